"""The metrics of walks, as a StatsD server on loopback gets them from Airflow's own client."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import TaskInstanceState
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk._shared.observability.metrics.statsd_logger import get_statsd_logger
from airflow.sdk.observability import stats as airflow_stats
from statsd import StatsClient

from airflow_extract_provider import stats
from airflow_extract_provider.extract.progress import Summary
from airflow_extract_provider.stats import COUNTERS, GAUGES
from tests.operators.test_backfill import Shop
from tests.operators.test_backfill import shop as shop

Heard = Callable[[], dict[str, str]]


@contextmanager
def listening(*, tags: bool) -> Iterator[Heard]:
    """A StatsD server that Airflow's client sends to; it tells what it has got, by name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.5)
        port = server.getsockname()[1]

        def heard() -> dict[str, str]:
            found: dict[str, str] = {}
            while True:
                try:
                    name, _, value = server.recv(4096).decode().partition(":")
                except TimeoutError:
                    return found
                found[name] = value

        client = get_statsd_logger(
            stats_class=StatsClient,
            host="127.0.0.1",
            port=port,
            prefix="airflow",
            influxdb_tags_enabled=tags,
            statsd_influxdb_enabled=tags,
        )
        with backend(lambda: client):
            yield heard
        client.statsd.close()


@contextmanager
def backend(factory: Callable[[], Any]) -> Iterator[None]:
    """Airflow sends its metrics there meanwhile."""
    airflow_stats.initialize(factory=factory, export_legacy_names=True)
    try:
        yield
    finally:
        airflow_stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def a_summary(**over: object) -> Summary:
    """A second slice: 5 records in all, 3 of them its own."""
    told: dict[str, object] = {
        "source": "crm",
        "object": "odd name",
        "walk": "incremental",
        "complete": True,
        "pages": 2,
        "requests": 2,
        "records": 5,
        "counts": {"created": 5},
        "seconds": 1.0,
        "cursor_before": {},
        "cursor_after": {},
        "complete_to": datetime.now(timezone.utc) - timedelta(minutes=2),
        "slice": {"records": 3, "created": 2, "unchanged": 1, "requests": 1, "deleted": 0},
        "quota_left": 0.25,
    }
    return Summary(**{**told, **over})  # type: ignore[arg-type]


def test_without_tags() -> None:
    """Plain StatsD knows no tags: the second name says it all. Counted is the slice alone, and no zero."""
    with listening(tags=False) as heard:
        stats.emit(a_summary())
        found = heard()
    own = {name.removeprefix("airflow.extract.crm.odd_name.incremental."): value for name, value in found.items()}
    assert own["records"] == "3|c"
    assert own["created"] == "2|c"
    assert own["requests"] == "1|c"
    assert own["quota_left"] == "0.25|g"
    assert 110 < float(own["lag_seconds"].removesuffix("|g")) < 180
    assert {"airflow.extract.records", "airflow.extract.lag_seconds"} <= set(found)
    assert not [name for name in found if "deleted" in name or "updated" in name]


def test_with_tags() -> None:
    """Where the backend has tags, the name is the same for all objects."""
    with listening(tags=True) as heard:
        stats.emit(a_summary(object="contacts"))
        found = heard()
    assert found["airflow.extract.records,source=crm,object=contacts,walk=incremental"] == "3|c"
    assert found["airflow.extract.quota_left,source=crm,object=contacts,walk=incremental"] == "0.25|g"


def test_only_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has told Airflow to leave the long names out gets none of ours either."""
    monkeypatch.setenv("AIRFLOW__METRICS__LEGACY_NAMES_ON", "false")
    with listening(tags=True) as heard:
        stats.emit(a_summary(object="contacts"))
        assert {name.partition(",")[0] for name in heard()} == {
            "airflow.extract.records",
            "airflow.extract.created",
            "airflow.extract.requests",
            "airflow.extract.lag_seconds",
            "airflow.extract.quota_left",
        }


def test_not_complete() -> None:
    """An object that is complete to no instant has no lag, and a quota that nobody knows is not shown."""
    with listening(tags=False) as heard:
        stats.emit(a_summary(complete_to=None, quota_left=None))
        assert not [name for name in heard() if name.endswith(GAUGES)]


def test_no_walk_fails_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """A backend that cannot be made or fails is told of in the log."""

    def broken() -> object:
        raise RuntimeError("no such backend")

    with backend(broken):
        stats.emit(a_summary())
    assert "metrics were not sent (RuntimeError)" in caplog.text


def test_a_task(shop: Shop) -> None:
    """Each slice of a walk is told once; a run that has nothing to do tells only how far behind the copy is."""
    with listening(tags=True) as heard:
        assert shop.run().state is TaskInstanceState.SUCCESS
        found = heard()
        tags = "source=shop,object=things,walk=backfill"
        assert found[f"airflow.extract.records,{tags}"] == found[f"airflow.extract.created,{tags}"] == "50|c"
        assert shop.run(run_id="another").state is TaskInstanceState.SUCCESS
        assert not [name for name, value in heard().items() if name.startswith("airflow.extract") and "|c" in value]


def test_the_docs_name_each() -> None:
    """The table in the docs has all of them."""
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert not [name for name in (*COUNTERS, *GAUGES) if f"`extract.{name}`" not in text]
