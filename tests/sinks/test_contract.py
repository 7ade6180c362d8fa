"""What every sink promises, by what a consumer finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.errors import SinkRefusedError, SinkUnavailableError
from tests.sinks.events import event, histories
from tests.sinks.stage import Stage
from tests.sinks.topics import Received, told

KEYS = [f"key-{number}" for number in range(40)]


def _by_key(received: Sequence[Received]) -> dict[str, list[Received]]:
    found = defaultdict(list)
    for each in received:
        found[each.key].append(each)
    return dict(found)


def test_the_order_of_each_key_is_kept(stage: Stage) -> None:
    """Within a publish and over several ones."""
    events = histories(KEYS, range(1, 31))
    for start in range(0, len(events), 90):
        stage.sink.publish(events[start : start + 90])
    assert _by_key(stage.received()) == _by_key([told(each) for each in events])


def test_of_many_events_none_is_lost_or_doubled(stage: Stage) -> None:
    """Five thousand at once."""
    events = histories((f"record {number}" for number in range(1000)), range(1, 6))
    stage.sink.publish(events)
    received = stage.received()
    assert len(received) == len(events) == 5000
    assert _by_key(received) == _by_key([told(each) for each in events])


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("ключ 鍵 🔑 \u0000", '{"name": "Ünïcode 名前 🙂"}'.encode()),
        ("1", None),
        ("2", b"null"),
        ("3", b'{"n": 12345678901234567890123456789.10, "e": 1E+400, "z": -0.0}'),
        ('["a", "b"]', b'{ "spaces" :  [ ] }'),
        ("", b'""'),
        ("4", b'"' + b"x" * 500_000 + b'"'),
    ],
    ids=["unicode", "gone", "null", "digits", "spaces", "empty", "large"],
)
def test_key_and_data_arrive_byte_for_byte(stage: Stage, key: str, data: bytes | None) -> None:
    """Nothing is read and written anew on the way."""
    sent = event(key, data=data)
    stage.sink.publish([sent])
    assert stage.received() == [told(sent)]


def test_the_attributes_arrive(stage: Stage) -> None:
    """All of CloudEvents' attributes; data's type only where there is data."""
    stage.sink.publish([event("1", 7, baseline=True), event("1", 8, None)])
    first, last = (each.attributes for each in stage.received())
    assert first["id"] != last["id"]
    assert {name: value for name, value in first.items() if name != "id"} == {
        "specversion": "1.0",
        "source": "extract://shop/orders",
        "type": "orders.changed",
        "subject": "1",
        "time": "2026-01-01T00:00:00.000007Z",
        "revision": "7",
        "baseline": "true",
        "datacontenttype": "application/json",
    }
    assert set(first) - set(last) == {"baseline", "datacontenttype"}


def test_the_same_again_has_the_same_ids(stage: Stage) -> None:
    """After a crash everything is published again: who has seen an id knows it."""
    events = histories(KEYS[:5], range(1, 4))
    stage.sink.publish(events)
    stage.sink.publish(events)
    received = stage.received()
    assert len(received) == 2 * len(events)
    assert {each.id for each in received} == {each.id for each in events}
    twice = [told(each) for each in events]
    assert _by_key(received) == _by_key(twice + twice)


def test_nothing_to_publish(stage: Stage) -> None:
    """Is no error, and leaves nothing."""
    stage.sink.publish([])
    assert stage.received() == []


def test_a_failure_has_a_name_and_the_next_publish_works(stage: Stage) -> None:
    """Nothing of the failed one arrives later between what is published then."""
    with pytest.raises((SinkUnavailableError, SinkRefusedError)):
        stage.sink.publish(stage.failing())
    before = stage.received()
    stage.sink.publish(histories(KEYS, [1]))
    after = stage.received()
    assert len(after) == len(before) + len(KEYS)
    assert {each.key for each in after} - {"lost"} == set(KEYS)


def test_closed_twice(stage: Stage) -> None:
    """Closing is never an error."""
    stage.sink.publish([event()])
    stage.sink.close()
    stage.sink.close()
    assert stage.sink.timeout > timedelta(0)
