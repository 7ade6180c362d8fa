"""The package's own receiver of webhooks as our child: `airflow-extract receiver`, on loopback only.

It stands beside Airflow, not in it: of Airflow's connections it has the store's, and the one with its secret.
"""

import json
import os
import secrets
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from airflow_extract_provider.testing.postgres import free_port
from demo.processes import Child, ChildFailedError, start, stop_all

START_SECONDS = 120.0
PATH = "/webhooks/stripe/events"  # as `webhooks` in sources/stripe.yaml


class Receiver:
    """A receiver on a free port of 127.0.0.1, for the sources in a folder.

    ``address`` is where an API is to send its webhooks, ``secret`` what it is to sign them with.
    """

    def __init__(self, folder: Path, sources: Path, store: str, port: int | None = None) -> None:
        """Prepare; ``store`` is the connection of the store, in JSON. Its log goes to ``folder``/receiver.log."""
        self.folder = folder
        self.sources = sources
        self.log = folder / "receiver.log"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.address = f"{self.url}{PATH}"
        self.secret = f"whsec_{secrets.token_urlsafe(24)}"
        self.child: Child | None = None
        self._store = store

    def __enter__(self) -> Self:
        """Start, and wait until it is ready."""
        try:
            self.launch()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def launch(self) -> None:
        """Start it, once the tables of the store are made, without waiting until it listens."""
        home = self.folder / "receiver"
        home.mkdir(parents=True, exist_ok=True)
        # What the command `airflow-extract receiver` runs, whether or not its script is on PATH.
        command = [sys.executable, "-m", "airflow_extract_provider.receiver.main", "receiver"]
        command += ["--sources", str(self.sources), "--port", str(self.port), "--workers", "1", "--stop-within", "2"]
        self.child = start("receiver", command, self.log, self._environment(home), home)

    def wait_until_ready(self) -> None:
        """Return when it can store what comes; raise if it ends, or the time is over."""
        until = time.monotonic() + START_SECONDS
        while not self._is_ready():
            self.check()
            if time.monotonic() > until:
                raise ChildFailedError(f"the receiver is not ready on {self.url}; its log: {self.log}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise if it has ended: whoever sends would be refused."""
        if self.child is not None:
            self.child.check()

    def stop(self) -> None:
        """End it; what it has answered for is in the store."""
        if self.child is not None:
            stop_all([self.child], patience=5)
            self.child = None

    def _environment(self, home: Path) -> dict[str, str]:
        """Return our own environment, without another Airflow's settings, and two connections."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        return {
            **kept,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW_CONN_EXTRACT_STORE": self._store,
            "AIRFLOW_CONN_STRIPE_WEBHOOKS": json.dumps({"conn_type": "webhook", "password": self.secret}),
        }

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/ready", timeout=5).ok
        except requests.RequestException:
            return False
