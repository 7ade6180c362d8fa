"""Where the store is now, by its Airflow connection: asked at each opening, but not waited for without end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.unshown import Unshown

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["Lookup"]

_PATIENCE = 2.5
"""Seconds that a secrets backend has: well below what the opening of a connection may take."""


class Lookup(Unshown):
    """Tells a connection as it is found, else as it was last known: what tells of a store may be away, or hang, where
    the store is not."""

    def __init__(self, find: Callable[[], Connection], known: Connection | None = None) -> None:
        self._find, self._known = find, known
        self._asked: asyncio.Future[Connection] | None = None

    async def __call__(self) -> Connection:
        """Ask, for a moment. Raises StoreUnavailableError, or what ``find`` does: it was never known."""
        if self._asked is None or self._asked.done():
            self._asked = self._begun()
        try:
            # One who hangs is not asked a second time meanwhile: each would be a thread that stays.
            async with asyncio.timeout(_PATIENCE):
                self._known = await asyncio.shield(self._asked)
        except TimeoutError:
            if self._known is None:
                raise StoreUnavailableError("the secrets backend does not tell in time where the store is.") from None
        except Exception:  # whatever ails the backend: the store is where it was
            if self._known is None:
                raise
        return self._known

    def _begun(self) -> asyncio.Future[Connection]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[Connection] = loop.create_future()

        def tell(found: Connection | BaseException) -> None:
            if isinstance(found, BaseException):
                asked.set_exception(found)
                asked.exception()  # nobody may wait for it any more
            else:
                asked.set_result(found)

        def work() -> None:
            found: Connection | BaseException
            try:
                found = self._find()
            except Exception as exc:
                found = exc
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, found)

        # Not one of the loop's own: their end is waited for when the receiver stops.
        threading.Thread(target=work, name="lookup", daemon=True).start()
        return asked
