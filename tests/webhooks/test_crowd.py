"""More strangers than there may be connections: whoever sends what is genuine is answered all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.databases import Databases
from tests.webhooks.listening import Talk
from tests.webhooks.receiving import PATH, Process, deliveries
from tests.webhooks.test_service import metrics, send

pytestmark = pytest.mark.slow

MOST = 40
FORGED = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
STRANGERS = {
    "one forged request each": FORGED,
    "nothing said": b"",
    "heads that do not end": FORGED[:30],
    "bodies that do not end": FORGED.replace(b"length: 0", b"length: 9"),
    "health asked for": b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Process]:
    """One worker with few connections."""
    with (
        databases.with_books() as dsn,
        Process(tmp_path_factory.mktemp("crowd"), dsn, "--workers", "1", "--connections", str(MOST)) as started,
    ):
        yield started


@pytest.mark.parametrize("said", STRANGERS)
def test_strangers_shut_nobody_out(crowded: Process, said: str) -> None:
    """Three times as many as there may be, who stay: all that is genuine is taken, over an old connection too; nobody
    who asks for health or metrics is refused."""
    first = next(deliveries(1))
    before = metrics(crowded)['extract_webhook_refused_total{reason="crowded"}']
    with ExitStack() as open, Talk(crowded.port) as honest:
        honest.say(first.request)
        assert honest.statuses(1) == [200]
        for count in range(2, 5):
            for _ in range(MOST):
                open.enter_context(Talk(crowded.port)).say(STRANGERS[said])
            honest.say(first.request)
            assert honest.statuses(count) == [200] * count
            assert set(send(crowded.port, 50)) == {200}
            assert requests.get(f"{crowded.url}/health", timeout=5).text == "alive\n"
        assert len([*Path(f"/proc/{crowded.pid}/fd").iterdir()]) < MOST + 40
        assert metrics(crowded)['extract_webhook_refused_total{reason="crowded"}'] - before > MOST
    assert crowded.told().count("\n") < 20


def test_those_who_are_known_go_last(crowded: Process) -> None:
    """But they do, where there is nobody else: who has just come may be one who is trusted soon."""
    all = list(deliveries(MOST + 5))
    with ExitStack() as open:
        talks = []
        for each in all:
            talks.append(open.enter_context(Talk(crowded.port)))
            talks[-1].say(each.request)
            assert talks[-1].statuses(1) == [200]
        assert [each.is_closed(0.2) for each in talks[:3]] == [True] * 3
        assert not talks[-1].is_closed(0.2)
