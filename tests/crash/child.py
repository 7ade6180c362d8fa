"""A plain pipeline in a process of its own, there to be killed and stopped: ``python -m tests.crash.child JSON``.

The argument names source, object, dsn, url, runner, label, settings (seconds are floats) and, if there is one, the
file that stands for the cursor. Ends with 0 and the summary, or with 3 and the name of the error, as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.pipeline import Runner, Settings, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import connecting

ENDED_BY_ERROR = 3


class FileCursor:
    """A cursor store that is a file; each write is noted in a second one, with who wrote."""

    def __init__(self, path: Path, runner: str) -> None:
        self._path, self._runner = path, runner

    def read(self, key: str) -> str | None:
        """The text, None when there is none."""
        return self._path.read_text() if self._path.exists() else None

    def write(self, key: str, text: str) -> None:
        """Store the text."""
        self._path.write_text(text)
        with self._path.with_suffix(".log").open("a") as log:
            log.write(f"{self._runner}\n")


def main(asked: dict[str, Any]) -> int:
    """Run; returns the exit code."""
    source = Source.model_validate(asked["source"])
    session = requests.Session()
    session.trust_env = False
    try:
        summary = run(
            source,
            asked["object"],
            postgres=connecting(asked["dsn"]),
            client=ApiClient(source, session, asked["url"]),
            runner=Runner(asked["runner"], asked["label"]),
            cursor=FileCursor(Path(asked["cursor"]), asked["runner"]) if asked.get("cursor") else None,
            take_over=asked.get("take_over", False),
            settings=Settings(**{name: _setting(name, value) for name, value in asked["settings"].items()}),
        )
    except ExtractError as exc:
        print(json.dumps({"error": type(exc).__name__, "message": str(exc)}), flush=True)
        return ENDED_BY_ERROR
    print(json.dumps(summary.as_dict()), flush=True)
    return 0


def _setting(name: str, value: float | str) -> Any:
    if isinstance(value, str) or name in ("batch", "ahead"):
        return value
    return timedelta(seconds=value)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
