"""The connection type `webhook`: the secrets by which an API signs what it sends. It verifies nothing itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_extract_provider.extract.errors import ConnectionMissingError, ExtractError
from airflow_extract_provider.hooks.connection import find_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["EXAMPLE", "WebhookHook"]

EXAMPLE = "--conn-type webhook --conn-password SECRET"
"""The rest of the command that makes such a connection."""
_PREVIOUS = "previous"
_AS_LIST = 'Enter the secrets as a list in JSON, such as ["SECRET", "ANOTHER"]'


class WebhookHook(BaseHook):
    """The secrets behind a connection of type Webhook.

    Its password is the secret that signs now. `previous` in its extra holds those that are still accepted while a
    secret is changed: one, several with line ends between them, or a list in JSON. For an API that logs in by `basic`
    there is a login too, and each of `previous` is a whole `login:password`.
    """

    conn_name_attr = "webhook_conn_id"
    default_conn_name = "webhook_default"
    conn_type = "webhook"
    hook_name = "Webhook"

    def __init__(self, webhook_conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        """``connection`` is for those who have it already; None: it is looked up when it is needed."""
        super().__init__()
        self.webhook_conn_id = webhook_conn_id
        self._given = connection

    def __reduce__(self) -> tuple[type[WebhookHook], tuple[str]]:
        # A connection holds secrets, which do not belong into a pickle: it is looked up again.
        return type(self), (self.webhook_conn_id,)

    def secrets(self) -> tuple[str, ...]:
        """The secret that signs now, then those that are still accepted; for `basic` each as `login:password`.

        Raises ConnectionMissingError: there is no such connection, or it lacks the secret. No message shows one.
        """
        conn = self._given or find_connection(self.webhook_conn_id, EXAMPLE)
        # The end of a line comes along when a secret is pasted.
        now = (conn.password or "").strip("\r\n")
        if not now:
            raise self._unusable("holds no secret", "Enter it as its password")
        return tuple(dict.fromkeys((f"{conn.login}:{now}" if conn.login else now, *self._previous(conn))))

    def test_connection(self) -> tuple[bool, str]:
        """Tell in words how many secrets it holds. Nothing is sent: it is the API that comes here."""
        try:
            _, *previous = self.secrets()
        except ExtractError as exc:
            return False, f"{exc.what} {exc.todo}"
        more = f"; {len(previous)} more still accepted" if previous else ""
        return True, f"One secret{more}. Whether the API signs by it shows the first webhook."

    def _previous(self, conn: Connection) -> list[str]:
        try:
            extra: Any = conn.extra_dejson
        except ValueError:
            extra = None
        if not isinstance(extra, Mapping):
            raise self._unusable("has an extra that is no JSON object", "Correct it")
        if unknown := sorted(set(extra) - {_PREVIOUS}):
            raise self._unusable(f"has unknown keys in its extra: {', '.join(unknown)}", "Take them out")
        given = extra.get(_PREVIOUS) or []
        found = self._listed(given) if isinstance(given, str) else given
        if not isinstance(found, list) or not all(isinstance(each, str) and each.strip() for each in found):
            raise self._unusable("has a wrong `previous`", _AS_LIST)
        return [each.strip("\r\n") for each in found]

    def _listed(self, text: str) -> Any:
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, list):
                return found
        lines = [each for each in re.split(r"[\r\n]+", text) if each]
        # One secret of several words, or several secrets? Taken for several, each word of it would be a key.
        if any(sign.isspace() for each in lines for sign in each):
            raise self._unusable("has spaces in `previous`", _AS_LIST)
        return lines

    def _unusable(self, what: str, todo: str) -> ConnectionMissingError:
        return ConnectionMissingError(f"the Webhook connection {self.webhook_conn_id!r} {what}.", todo=f"{todo}.")
