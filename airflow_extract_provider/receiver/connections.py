"""Airflow's connections for a process that has no Airflow beside it, and the secrets that are read out of them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

from airflow_extract_provider.extract.errors import ConnectionMissingError, ExtractError
from airflow_extract_provider.extract.signing import Scheme
from airflow_extract_provider.extract.unshown import Unshown
from airflow_extract_provider.extract.webhooks.signatures import check_secret
from airflow_extract_provider.hooks.webhook import EXAMPLE, WebhookHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["Find", "Secrets", "beside_airflow", "telling"]

Find: TypeAlias = Callable[[str, str], "Connection"]
"""Finds an Airflow connection by its id; the second argument is the rest of a command that would make it. Raises
ConnectionMissingError."""

_ENVIRONMENT = "airflow.secrets.environment_variables.EnvironmentVariablesBackend"
_FORM = (
    "Write the variable AIRFLOW_CONN_... as JSON, with what is neither login nor password in its extra, such as "
    '{"conn_type": "webhook", "password": "SECRET", "extra": {"previous": "SECRET"}}.'
)
_PATIENCE = 5.0
"""Seconds that those behind it wait for a connection that does not come, and after which who starts is told of it."""
_LONG, _LOOK = 60.0, 5.0
"""Seconds after which it is said that one does not come, and between two looks whether that is so."""

_log = logging.getLogger(__name__)


def beside_airflow() -> Find:
    """Finds connections in the secrets backend of Airflow's configuration, then in the environment as AIRFLOW_CONN_...

    Neither Airflow's database nor its API server is asked: this process may stand where it reaches neither.
    """
    from airflow.sdk.configuration import initialize_secrets_backends

    backends: list[Any] = initialize_secrets_backends([_ENVIRONMENT])

    def find(conn_id: str, example: str) -> Connection:
        del example  # no command makes a connection here
        failed: list[str] = []
        written = f"AIRFLOW_CONN_{conn_id.upper()}" in os.environ
        for each in backends:
            try:
                found: Connection | None = each.get_connection(conn_id=conn_id)
            except AirflowSecretsBackendAccessDenied:
                # It decides: another one must not be asked in its place.
                raise _missing(conn_id, f"cannot be read ({type(each).__name__} denies it)") from None
            except Exception as exc:  # any backend's own; its words may hold what it was asked with
                failed.append(f"{type(each).__name__}: {type(exc).__name__}")
                continue
            if found is not None:
                return found
        if failed and written:
            raise ConnectionMissingError(
                f"the connection {conn_id!r} cannot be read ({'; '.join(failed)}).", todo=_FORM
            )
        raise _missing(conn_id, f"cannot be read ({'; '.join(failed)})" if failed else "is not there")

    return find


def _missing(conn_id: str, what: str) -> ConnectionMissingError:
    return ConnectionMissingError(
        f"the connection {conn_id!r} {what}.",
        todo=f"Set AIRFLOW_CONN_{conn_id.upper()}, or enter it in the secrets backend of Airflow's configuration.",
    )


def telling(find: Find) -> Find:
    """Finds the same, and says which connection it is that does not come: whoever starts a process would see nothing,
    and wait with it."""

    def found(conn_id: str, example: str) -> Connection:
        says = "the connection %r is waited for: its secrets backend does not answer."
        timer = threading.Timer(_PATIENCE, _log.warning, (says, conn_id))
        timer.daemon = True
        timer.start()
        try:
            return find(conn_id, example)
        finally:
            timer.cancel()
            timer.join()  # who forks next has no other thread

    return found


class Secrets(Unshown):
    """The secrets of all endpoints, by the ids of their connections.

    They are read when it is made, and anew by :meth:`refresh`. What cannot be read then stays as it was last; each
    connection by itself, whatever becomes of another.
    """

    def __init__(
        self,
        find: Find,
        uses: Iterable[tuple[str, Scheme]],
        known: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Read them; ``uses`` are the ids of connections, each with a scheme that its secrets are to verify by.
        ``known`` are those that were read a while ago, for who must begin though they cannot be read now.

        Raises ConnectionMissingError: a connection is missing, holds no secret, or one that the scheme cannot use.
        """
        self._find = find
        self._schemes: defaultdict[str, list[Scheme]] = defaultdict(list)
        for conn_id, scheme in uses:
            self._schemes[conn_id].append(scheme)
        self._failing: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._lock = threading.Lock()
        self._known: Mapping[str, tuple[str, ...]] = (
            {each: self._read(each) for each in sorted(self._schemes)} if known is None else known
        )

    @property
    def known(self) -> Mapping[str, tuple[str, ...]]:
        """Those of each connection, as they were last read."""
        return self._known

    def of(self, conn_id: str) -> Callable[[], tuple[str, ...]]:
        """Tells the secrets of one of the connections, as they were last read."""
        return lambda: self._known[conn_id]

    def refresh(self) -> None:
        """Read all anew. One that does not come in time is not waited for, nor asked for again until it has come."""
        for conn_id in self._schemes:
            if conn_id in self._asked:
                continue
            # Not by this thread: it would stand still with it, and the others' secrets grow old.
            reading = threading.Thread(target=self._reread, args=(conn_id,), name="secret", daemon=True)
            self._asked[conn_id] = time.monotonic()
            try:
                reading.start()
            except RuntimeError:  # there may be no more threads now: the next time
                del self._asked[conn_id]
                continue
            reading.join(_PATIENCE)

    def refreshing(self, every: float, *, now: bool = False) -> threading.Event:
        """Read all anew every so many seconds, and ``now``, in a thread, until the event is set."""
        ended = threading.Event()

        def work() -> None:
            due = time.monotonic() + (0.0 if now else every)
            while not ended.wait(max(0.0, min(due - time.monotonic(), _LOOK))):
                if time.monotonic() >= due:
                    self.refresh()
                    due = time.monotonic() + every
                self._complain()

        threading.Thread(target=work, name="secrets", daemon=True).start()
        return ended

    def _reread(self, conn_id: str) -> None:
        """Read one, whatever becomes of it."""
        try:
            found = self._read(conn_id)
        except Exception as exc:  # any backend's own; its words may hold what it was asked with
            own = f"the connection {conn_id!r} cannot be read ({type(exc).__name__})."
            self._fails(conn_id, exc.what if isinstance(exc, ExtractError) else own)
        else:
            with self._lock:
                changed = self._known[conn_id] != found
                # At once: who asks meanwhile sees the old ones or the new ones.
                self._known = {**self._known, conn_id: found}
            if self._failing.pop(conn_id, None) is not None or changed:
                _log.info("the secrets of the connection %r were read anew: %d pass now.", conn_id, len(found))
        finally:
            del self._asked[conn_id]

    def _complain(self) -> None:
        """Say which ones have not come for long."""
        for conn_id, at in self._asked.copy().items():
            if time.monotonic() - at >= _LONG:
                self._fails(conn_id, f"the connection {conn_id!r} is waited for: its secrets backend does not answer.")

    def _fails(self, conn_id: str, what: str) -> None:
        if self._failing.get(conn_id) != what:
            _log.warning("%s The secrets that were last read stay.", what)
        self._failing[conn_id] = what

    def _read(self, conn_id: str) -> tuple[str, ...]:
        conn = self._find(conn_id, EXAMPLE)
        if conn.login and any(each.algorithm != "basic" for each in self._schemes[conn_id]):
            # With it the secret would be `login:password`, by which nothing that is signed is right.
            raise ConnectionMissingError(
                f"the Webhook connection {conn_id!r} has a login, and not only `basic` verifies by it.",
                todo="Take the login out, or give that endpoint a connection of its own.",
            )
        found = WebhookHook(conn_id, connection=conn).secrets()
        for scheme in self._schemes[conn_id]:
            for number, secret in enumerate(found, 1):
                try:
                    check_secret(scheme, secret)
                except ValueError as exc:
                    raise ConnectionMissingError(
                        f"secret {number} of the Webhook connection {conn_id!r} verifies nothing: {exc}.",
                        todo="Enter it as the API shows it.",
                    ) from None
        return found
