"""librdkafka says the same twenty times a second while a broker is away: it is logged once in a while."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from airflow_extract_provider.extract.sinks import librdkafka_log
from airflow_extract_provider.extract.sinks.librdkafka_log import LIBRARY_LOG
from tests.said import said_by


def test_each_thing_once_in_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it took each time; of each broker, and after a while again. What is to find a fault is all there."""
    now = [1000.0]
    monkeypatch.setattr(librdkafka_log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    caplog.set_level(logging.DEBUG)
    for ms in range(100):
        LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", f"kafka-0: refused (after {ms}ms in state CONNECT)")
    LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", "kafka-1: refused (after 1ms in state CONNECT)")
    now[0] += 61
    LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", "kafka-0: refused (after 2ms in state CONNECT)")
    for _ in range(2):
        LIBRARY_LOG.debug("found")
        for word in ("a", "b", "c", "d"):
            LIBRARY_LOG.error("another %s", word)
    assert [each.getMessage() for each in said_by(LIBRARY_LOG.name, caplog)] == [
        "FAIL [producer-1] kafka-0: refused (after 0ms in state CONNECT)",
        "FAIL [producer-1] kafka-1: refused (after 1ms in state CONNECT)",
        "FAIL [producer-1] kafka-0: refused (after 2ms in state CONNECT)",
        "found",
        *(f"another {word}" for word in ("a", "b", "c", "d")),
        "found",
    ]


def test_it_does_not_remember_without_end(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library may say: rather the same twice."""
    monkeypatch.setattr(librdkafka_log, "_MOST", 3)
    with caplog.at_level(logging.WARNING):
        for word in ("one", "two", "three", "four", "one"):
            LIBRARY_LOG.error("it says %s", word)
    (seldom,) = LIBRARY_LOG.filters
    assert len(seldom._said) <= 3  # type: ignore[union-attr]
    assert "it says four" in caplog.text
