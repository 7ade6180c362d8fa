"""localstripe (a stateful fake Stripe from PyPI) as our child: from scratch, in memory, on loopback only.

Run as a script it *is* the server; ``LocalStripe`` starts that script. Beside its API it has a back door: what is
changed there leaves no event.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import requests

from airflow_extract_provider.testing.postgres import free_port
from demo.processes import Child, ChildFailedError, start, stop_all

if TYPE_CHECKING:
    from aiohttp.web import Application, Request, StreamResponse

PROJECT = Path(__file__).resolve().parents[1]
START_SECONDS = 30.0
BACK_DOOR = "/_config/store"  # below `_config` no key is asked for


class LocalStripe:
    """An empty fake Stripe on a free port of 127.0.0.1, gone with all its data when stopped.

    Any key that begins with ``sk_`` opens it, as Bearer token or as user name.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        """Prepare; its log goes to ``folder``/localstripe.log."""
        self.log = folder / "localstripe.log"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.child: Child | None = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def start(self) -> Self:
        """Start it and return when it answers."""
        command = [sys.executable, "-m", "demo.localstripe_server", "--port", str(self.port)]
        self.child = start("localstripe", command, self.log, os.environ, PROJECT)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            self.child.check()
            if time.monotonic() > until:
                raise ChildFailedError(f"localstripe does not answer on {self.url}: {self.child.last_words()}")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """End it; what it held is gone."""
        if self.child is not None:
            stop_all([self.child], patience=2)
            self.child = None

    def send_webhooks(self, url: str, secret: str, types: Sequence[str]) -> None:
        """Have it send its events of these types from now on: each once, a second after it, in whatever order."""
        asked = {"url": url, "secret": secret, "events": list(types)}
        requests.post(f"{self.url}/_config/webhooks/demo", json=asked, timeout=30).raise_for_status()

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/v1/plans", auth=("sk_test_ready", ""), timeout=5).ok
        except requests.ConnectionError:
            return False


def serve(port: int, seed: int) -> None:
    """Serve until the process is ended."""
    from aiohttp import web
    from localstripe import resources, server

    # It would pickle all it holds at every write, to a fixed path, and read that back at its next start.
    resources.Store.dump_to_disk = lambda store: None
    # Its ids are random: with a seed the same requests give the same ids.
    random.seed(seed)
    open_back_door(server.app)
    web.run_app(server.app, host="127.0.0.1", port=port, access_log=None, print=None)


def open_back_door(app: "Application") -> None:
    """Let ``PATCH`` set fields of what is stored, and ``DELETE`` take it out, past all that its API would do."""
    from aiohttp import web
    from localstripe import resources

    def kept(request: "Request") -> str:
        key = f"{request.match_info['kind']}:{request.match_info['id']}"
        if key not in resources.store:
            raise web.HTTPNotFound
        return key

    async def patch(request: "Request") -> "StreamResponse":
        vars(resources.store[kept(request)]).update(await request.json())
        return web.Response()

    async def delete(request: "Request") -> "StreamResponse":
        del resources.store[kept(request)]
        return web.Response()

    app.router.add_route("PATCH", f"{BACK_DOOR}/{{kind}}/{{id}}", patch)
    app.router.add_route("DELETE", f"{BACK_DOOR}/{{kind}}/{{id}}", delete)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--seed", type=int, default=20)
    given = options.parse_args()
    serve(given.port, given.seed)
