"""The first backfill finds a state, and tells of no change; edges are armed by it. Later backfills tell of what was
missed."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from airflow_extract_provider.extract.pipeline import Summary
from airflow_extract_provider.extract.store.birth import born
from tests.exactly_once.oracle import found
from tests.exactly_once.play import Play


def told(play: Play) -> Counter[str]:
    """How many events of each type the outbox holds."""
    return Counter(type for each in found(play.conn).values() for type, _ in each)


def reset(play: Play, **how: Any) -> Summary:
    """Start the backfill over, as another task instance."""
    return play.run("backfill", runner=f"reset {play.chance.random()}", reset=True, **how)


def test_silent(play: Play) -> None:
    """No event, whatever the value; what is above the threshold has crossed it, what is below has not."""
    play.prepare(value=60)
    assert found(play.conn) == {}
    play.api.update(*play.api.ids[:3], value=70)
    play.api.update(*play.api.ids[3:5], value=10)
    play.api.clock.advance(timedelta(seconds=5))
    play.run()
    assert told(play)["over.50"] == told(play)["over.50.from.20"] == 0
    play.api.update(*play.api.ids[:5], value=80)
    play.api.clock.advance(timedelta(seconds=5))
    assert play.run().counts["events"] > 0
    assert told(play)["over.50"] == told(play)["over.50.from.20"] == 2


def test_in_slices(play: Play) -> None:
    """A first backfill that is cut, killed or started over in the middle is still the first: silent to its end."""
    play.prepare(run_for=timedelta(0), value=60)
    reset(play, run_for=timedelta(0))
    play.api.update(*play.api.ids, value=10)
    play.api.clock.advance(timedelta(seconds=5))
    assert play.run("backfill").complete
    assert found(play.conn) == {}
    play.api.update(*play.api.ids, value=70)
    play.api.clock.advance(timedelta(seconds=5))
    play.run()
    assert told(play)["over.50"] == len(play.api.ids)


def test_marked(play: Play) -> None:
    """With `baseline: emit` each record is told of, and marked; what comes later is not."""
    play.prepare(baseline="emit", value=60)
    count = len(play.api.ids)
    marked = play.conn.execute("select distinct baseline from extract.outbox").fetchall()
    assert told(play)["shop.things.created"] == told(play)["over.50"] == count
    assert marked == [(True,)]
    play.api.insert(1, value=5)
    play.api.clock.advance(timedelta(seconds=5))
    play.run()
    assert play.conn.execute("select distinct key from extract.outbox where not baseline").fetchall() == [("15",)]


def test_a_later_backfill(play: Play) -> None:
    """Started over, it tells of what the copy had missed, and of nothing else."""
    play.prepare()
    play.api.update(*play.api.ids[:2], value=70, touch=False)
    play.api.clock.advance(timedelta(seconds=5))
    reset(play)
    assert set(found(play.conn)) == {str(key) for key in play.api.ids[:2]}
    events = told(play)
    reset(play)
    assert told(play) == events


def test_a_store_of_before(play: Play) -> None:
    """A copy that was complete before births were counted: started over, it tells of what it had missed."""
    play.prepare()
    play.conn.execute("delete from extract.birth")
    play.api.update(*play.api.ids[:2], value=70, touch=False)
    play.api.clock.advance(timedelta(seconds=5))
    reset(play, run_for=timedelta(0))
    assert born(play.conn, "extract", "shop", "things").filled
    play.run("backfill")
    assert set(found(play.conn)) == {str(key) for key in play.api.ids[:2]}


def test_an_emptied_table(play: Play) -> None:
    """Filled anew it is a baseline again; its revisions begin at 1, and no id comes twice."""
    play.prepare()
    play.api.update(*play.api.ids, value=70)
    play.api.clock.advance(timedelta(seconds=5))
    play.run()
    before = told(play)
    play.conn.execute("truncate shop.things")
    first = born(play.conn, "extract", "shop", "things")
    reset(play)
    again = born(play.conn, "extract", "shop", "things")
    assert (again.number, again.filled) == (first.number + 1, True)
    assert told(play) == before
    play.api.update(*play.api.ids, value=10)
    play.api.clock.advance(timedelta(seconds=5))
    play.run()
    assert told(play)["value.changed"] == before["value.changed"] + len(play.api.ids)


def test_rows_deleted_by_hand(play: Play) -> None:
    """After a reset they are new records: created again, under other ids."""
    play.prepare(baseline="emit")
    play.conn.execute("delete from shop.things where key = '3'")
    reset(play)
    keys = play.conn.execute("select key, count(distinct id) from extract.outbox where type ~ 'created' group by 1")
    assert [row for row in keys if row[1] > 1] == [("3", 2)]
