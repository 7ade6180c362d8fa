"""Fields that do not count (`hash.exclude`) do not count in events either: in what fires, in what is told, in ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import SinkUnavailableError
from airflow_extract_provider.extract.events.change import Change, differing
from airflow_extract_provider.extract.events.detectors import Emitter
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.exact import read
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.sinks.memory import MemorySink
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from tests.events.test_detectors import RULES, change
from tests.store.applier import Applier
from tests.store.test_shape import a_source, raw

VOLATILE = {"exclude": ["stats.viewed_at", "url"]}
Make = Callable[..., Applier]


@pytest.fixture
def made(connect: Connect) -> Iterator[Make]:
    """Appliers of an object with volatile fields."""
    appliers: list[Applier] = []

    def make(events: Sequence[Any], **spec: Any) -> Applier:
        source = a_source(events=list(events), **{"hash": VOLATILE, **spec})
        migrate(connect, [source])
        appliers.append(Applier(connect, "plain", f"w{len(appliers)}", source))
        return appliers[-1]

    yield make
    for each in appliers:
        each.conn.close()


class Deaf(MemorySink):
    """Takes events, and is not heard to: its next acknowledgement is lost if ``loses`` says so."""

    loses = False

    def publish(self, events: Sequence[Event]) -> None:
        """Keep them all the same."""
        super().publish(events)
        if self.loses:
            self.loses = False
            raise SinkUnavailableError("no acknowledgement.")


def heard(conn: Connection) -> list[tuple[str, Any]]:
    """The last words of the events' types, and which fields they say have changed."""
    asked = "select type, data -> 'changed' from extract.events order by sequence"
    return [(kind.rpartition(".")[2], changed) for kind, changed in conn.execute(asked)]


def test_back_with_another_volatile_field(made: Make) -> None:
    """A record that was deleted and is back is no changed one, as long as nothing that counts has changed."""
    one = made(["changed", "undeleted"])
    one.apply([raw(a=1, url="x", stats={"viewed_at": 1, "sold": 1})])
    one.apply([], gone=("k",))
    one.apply([raw(a=1, url="y", stats={"viewed_at": 2, "sold": 1})])
    assert heard(one.conn) == [("undeleted", None)]
    one.apply([], gone=("k",))
    one.apply([raw(a=1, url="z", stats={"viewed_at": 3, "sold": 2})])
    assert heard(one.conn)[1:] == [("changed", ["stats.sold"]), ("undeleted", None)]


@pytest.mark.parametrize("keep", ["all", ["a", "stats"]])
def test_what_is_said_to_have_changed(made: Make, keep: Any) -> None:
    """Only fields that count, whatever the rule; the records are told as they are."""
    one = made(
        [{"changed": {"field": "a", "name": "a.changed"}}, {"rising_edge": {"value": "a", "above": 1}}], keep=keep
    )
    one.apply([raw(a=1, url="x", stats={"viewed_at": 1, "sold": 1})])
    one.apply([raw(a=2, url="y", stats={"viewed_at": 2, "sold": 1})])
    assert heard(one.conn) == [("changed", ["a"]), ("rising_edge", ["a"])]
    (told,) = one.conn.execute("select data -> 'record' from extract.outbox order by sequence limit 1")
    assert told[0]["url"] == "y"
    # What stands around it is not it: that a field is gone, or is another kind of value, counts.
    one.apply([raw(a=1, url="y", stats=None)])
    assert heard(one.conn)[2:] == [("changed", ["a", "stats"])]


def test_a_repeat_has_the_same_id(made: Make) -> None:
    """Events have gone out and the records were rolled back; the next look finds the same change with other volatile
    fields. Of another change the ids are others."""
    one, sink = made(["created", "changed", {"every": "change"}], publish={"kafka": "k"}), Deaf()
    looks: list[list[tuple[int, str]]] = [[(1, "x"), (1, "y")], [(2, "x"), (2, "z")], [(3, "x"), (4, "x")]]
    ids = []
    for first, again in looks:
        sink.loses = True
        with pytest.raises(SinkUnavailableError):
            one.apply([raw(a=first[0], url=first[1], stats={"viewed_at": 1})], sink=sink)
        one.apply([raw(a=again[0], url=again[1], stats={"viewed_at": 2})], sink=sink)
        told, sink.events = sink.events, []
        half = len(told) // 2
        assert [each.revision for each in told[:half]] == [each.revision for each in told[half:]]
        ids.append([each.id for each in told[:half]] == [each.id for each in told[half:]])
    assert ids == [True, True, False]


def emitter(*rules: Any, exclude: Sequence[FieldPath] = ()) -> Emitter:
    """An emitter of the rules as a file writes them."""
    return Emitter.of("crm", "contacts", RULES.validate_python(list(rules)), 1, exclude=exclude)


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ('{"url": 1}', '{"url": 2}', []),
        ('{"url": {"a": 1}}', '{"url": {"a": 2}}', []),
        ('{"url": 1}', "{}", []),
        ("{}", '{"url": null}', []),
        ('{"n": {"v": 1}}', '{"n": {"v": 2}}', []),
        ('{"n": {"v": 1}}', '{"n": {}}', []),
        ('{"n": {"v": 1}}', "{}", ["n"]),
        ('{"n": {"v": 1, "w": 1}}', '{"n": {"v": 2, "w": 2}}', ["n.w"]),
        ('{"n": [{"v": 1}]}', '{"n": [{"v": 2}]}', ["n"]),
        ('{"urls": 1, "n.v": 1, "v": 1}', '{"urls": 2, "n.v": 2, "v": 2}', ['"n.v"', "urls", "v"]),
    ],
)
def test_what_counts(before: str, after: str, counts: list[str]) -> None:
    """What stands at an excluded path or below it does not, and nothing else is left out."""
    exclude: list[FieldPath] = [("n", "v"), ("url",)]
    assert differing(read(before.encode()), read(after.encode()), exclude=exclude) == counts
    told: Change = change(before, after, "undeleted")
    found = emitter("changed", exclude=exclude).detect(told, {}).events
    assert [read(each.data or b"")["changed"] for each in found] == ([counts] if counts else [])
    (with_all,) = emitter("changed").detect(told, {}).events
    assert set(counts) <= set(read(with_all.data or b"")["changed"])


def test_ids_stay_where_nothing_is_excluded() -> None:
    """Whoever excludes nothing has the ids of earlier releases."""
    told = change('{"n": 1, "url": "x"}', '{"n": 2, "url": "y"}')
    (usual,) = emitter("changed").detect(told, {}).events
    (bare,) = emitter("changed", exclude=[("url",)]).detect(told, {}).events
    assert usual.id == "8490edea9d4ce6e75678729fed5d13bb"
    assert bare.id != usual.id
