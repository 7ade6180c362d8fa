"""Cursors as Airflow Variables: where people see how far a walk is, and may edit it back."""

from __future__ import annotations

import os

from airflow.sdk import Variable

from airflow_extract_provider.extract.errors import CursorShadowedError, CursorUnreadableError

__all__ = ["VariableCursors"]


class VariableCursors:
    """A :class:`~airflow_extract_provider.extract.cursor.CursorStore` for use inside one run of a task.

    `Variable.get` alone cannot be trusted: when the API server fails, Airflow reports that the Variable is not there.
    An absence counts only when the list of keys could be read and lacks it.
    """

    def __init__(self) -> None:
        self._proven: set[str] = set()

    def read(self, key: str) -> str | None:
        """The Variable's text; None only when it is proven that there is none.

        Raises CursorUnreadableError, CursorShadowedError.
        """
        _refuse_environment(key)
        stored = _is_stored(key)
        text = _get(key)
        if stored and text is None:
            raise _unreadable(key, "it is there, but its value could not be read")
        if text is not None and not stored:
            raise _shadowed(key, "a secrets backend")
        return text

    def write(self, key: str, text: str) -> None:
        """Store the text. The first time it is read back: what hides the Variable is not always in our environment.

        Raises CursorUnreadableError, CursorShadowedError.
        """
        try:
            Variable.set(key, text)
        except Exception as exc:  # whatever failed, the cursor does not show the position now
            raise _unreadable(key, f"it could not be written ({type(exc).__name__})") from None
        if key not in self._proven:
            self._prove(key, text)

    def _prove(self, key: str, text: str) -> None:
        found = _get(key)
        if found is None:
            raise _unreadable(key, "it could not be read back")
        if found != text:
            raise _shadowed(key, "an environment variable or a secrets backend, here or at the API server,")
        self._proven.add(key)


def _is_stored(key: str) -> bool:
    try:
        return key in list(Variable.keys(prefix=key))
    except Exception as exc:  # an error of any kind proves nothing
        raise _unreadable(key, f"the keys could not be listed ({type(exc).__name__})") from None


def _get(key: str) -> str | None:
    """The value; None when Airflow gave none, for whatever reason."""
    try:
        return str(Variable.get(key))
    except Exception:  # "not found" is also what Airflow makes of a failing API server: the caller looks further
        return None


def _refuse_environment(key: str) -> None:
    name = f"AIRFLOW_VAR_{key.upper()}"
    if name in os.environ:
        raise _shadowed(key, f"the environment variable {name}")


def _shadowed(key: str, by: str) -> CursorShadowedError:
    return CursorShadowedError(
        f"the Variable {key} is hidden by {by}: what is written to it is never read.",
        kept="everything that was committed; the ledger holds the position.",
        todo=f"Remove the other definition of {key}.",
    )


def _unreadable(key: str, why: str) -> CursorUnreadableError:
    return CursorUnreadableError(
        f"the Variable {key} is not usable now: {why}.",
        kept="everything that was committed; the ledger holds the position.",
        todo="Run again once Airflow's API server answers. Taken for a missing cursor, this would have started over.",
    )
