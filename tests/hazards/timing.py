"""Hazards of time: ties, late commits, instants shown, compared and zoned in other ways, clocks that differ."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from tests.hazards.cell import AGAIN, BACKFILL, INCREMENTAL, Run, Stage


def tied(stage: Stage) -> Iterator[Run]:
    """35 records share one instant"""
    stage.filled(13)
    stage.api.bulk_import(35)
    stage.api.clock.advance(1)
    stage.filled(12)
    yield BACKFILL


def tied_in_changes(stage: Stage) -> Iterator[Run]:
    """35 records are changed at one instant"""
    stage.filled()
    yield BACKFILL
    at = stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:35], at=at)
    stage.api.clock.advance(1)
    stage.api.update(*stage.api.ids[35:41])
    stage.api.clock.advance(60)
    yield INCREMENTAL


def tied_for_good(stage: Stage) -> Iterator[Run]:
    """35 records share one instant, and nothing splits them"""
    stage.filled(13)
    keys = stage.api.bulk_import(35)
    stage.filled(12)
    yield BACKFILL.stopping
    stage.api.delete(*keys[3:])
    yield BACKFILL


def tied_for_good_in_changes(stage: Stage) -> Iterator[Run]:
    """35 records are changed at one instant, and nothing splits them"""
    stage.filled()
    yield BACKFILL
    stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:3])
    stage.api.clock.advance(1)
    stage.api.update(*stage.api.ids[3:38], at=stage.now)
    stage.api.clock.advance(60)
    yield INCREMENTAL.stopping
    stage.api.update(*stage.api.ids[8:38])
    yield INCREMENTAL


def tied_at_the_end(stage: Stage) -> Iterator[Run]:
    """a page ends inside of 4 records of one instant"""
    stage.filled(8)
    stage.api.bulk_import(4)
    stage.api.clock.advance(1)
    stage.filled(20)
    yield BACKFILL


def tied_and_deleted(stage: Stage) -> Iterator[Run]:
    """35 records share one instant; some of those that were read are deleted between two of its pages"""
    stage.filled(5)
    stage.api.bulk_import(35)
    stage.api.clock.advance(1)
    stage.filled(12)
    stage.before(4, lambda: stage.api.delete(*stage.read[1][5:8]))
    yield BACKFILL


def tied_and_moved(stage: Stage) -> Iterator[Run]:
    """35 records share one instant; some of those that were read are updated between two of its pages"""
    stage.filled(5)
    stage.api.bulk_import(35)
    stage.api.clock.advance(1)
    stage.filled(12)
    stage.before(4, lambda: stage.api.update(*stage.read[1][5:8]))
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def tied_in_any_order(stage: Stage) -> Iterator[Run]:
    """7 records share one instant over a page's end, and come in another order each time"""
    stage.filled(6)
    stage.api.bulk_import(7)
    stage.api.clock.advance(1)
    stage.filled(16)
    yield BACKFILL


def late_commit(stage: Stage) -> Iterator[Run]:
    """a transaction takes its instants before a run and commits after it"""
    stage.filled(25)
    yield BACKFILL
    stage.api.clock.advance(60)
    late = stage.api.begin()
    late.insert(3)
    late.update(*stage.api.ids[:3])
    stage.api.clock.advance(10)
    stage.api.insert(14)
    stage.api.clock.advance(10)
    yield INCREMENTAL
    late.commit()
    stage.api.clock.advance(10)
    yield INCREMENTAL


def late_in_backfill(stage: Stage) -> Iterator[Run]:
    """a transaction takes its instants before the backfill and commits in the midst of it"""
    stage.filled()
    late = stage.api.begin()
    late.update(*stage.api.ids[:3])
    stage.api.clock.advance(10)
    stage.before(4, late.commit)
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def hand_off(stage: Stage) -> Iterator[Run]:
    """records that the backfill has read are changed while it reads on for an hour"""
    stage.filled()
    stage.before(3, lambda: stage.api.update(*stage.read[0][:4]))
    stage.before(4, lambda: stage.api.clock.advance(3600))
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def changed_between(stage: Stage) -> Iterator[Run]:
    """records are changed between runs"""
    stage.filled(25)
    for _ in range(3):
        yield BACKFILL if stage.api.count == 0 else INCREMENTAL
        stage.api.clock.advance(60)
        stage.api.update(*stage.api.ids[2:24:3])
        stage.api.insert(3)
        stage.api.clock.advance(60)
    yield INCREMENTAL


def same_second(stage: Stage) -> Iterator[Run]:
    """more comes within the second in which a run was made"""
    stage.filled(25)
    yield BACKFILL
    stage.api.clock.advance(60)
    second = stage.now.replace(microsecond=0)
    stage.api.clock.advance(second + timedelta(seconds=1, microseconds=100_000) - stage.now)
    late = stage.api.begin()
    late.update(*stage.api.ids[5:8])
    stage.api.clock.advance(0.2)
    stage.api.update(*stage.api.ids[:3])
    stage.api.clock.advance(1)
    yield INCREMENTAL
    late.commit()
    stage.api.insert(7)
    yield INCREMENTAL


def second_update(stage: Stage) -> Iterator[Run]:
    """a record is changed again within the second that it shows"""
    stage.filled(25)
    yield BACKFILL
    stage.api.clock.advance(60)
    second = stage.now.replace(microsecond=0) + timedelta(seconds=1)
    stage.api.clock.advance(second + timedelta(microseconds=300_000) - stage.now)
    stage.api.update(*stage.api.ids[:3])
    stage.api.clock.advance(0.1)
    yield INCREMENTAL
    stage.api.update(*stage.api.ids[:3])
    stage.api.clock.advance(5)
    yield INCREMENTAL


def crowded_second(stage: Stage) -> Iterator[Run]:
    """35 records within one second, which the filter cannot tell apart"""
    stage.filled(13)
    for _ in range(35):
        stage.api.insert()
        stage.api.clock.advance(0.02)
    stage.api.clock.advance(1)
    stage.filled(12)
    yield BACKFILL


def undated(stage: Stage) -> Iterator[Run]:
    """records without the instant that the filter compares"""
    stage.filled(15)
    stage.api.insert(4, undated=True)
    stage.filled(15)
    yield BACKFILL


def autumn(stage: Stage) -> Iterator[Run]:
    """a year's changes, written with the offset of a zone, through the hour that autumn repeats"""
    stage.api.clock.advance(datetime(2026, 10, 25, 0, 20, tzinfo=timezone.utc) - stage.now)
    for _ in range(30):
        stage.api.insert()
        stage.api.clock.advance(240)
    stage.api.clock.advance(3600)
    yield BACKFILL
    stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:4])
    stage.api.clock.advance(60)
    yield INCREMENTAL


def undated_answers(stage: Stage) -> Iterator[Run]:
    """answers do not say what time it is, and the API's clock is four minutes behind ours"""
    stage.api.date = False
    stage.api.clock.advance(datetime.now(timezone.utc) - timedelta(minutes=30) - stage.now)
    stage.filled(25)
    stage.api.clock.advance(datetime.now(timezone.utc) - timedelta(minutes=4) - stage.now)
    yield BACKFILL
    stage.api.update(*stage.api.ids[:3])
    yield INCREMENTAL


def tokens_expired(stage: Stage) -> Iterator[Run]:
    """all page tokens expire in mid-walk"""
    stage.filled()
    stage.before(3, stage.api.expire_tokens)
    yield BACKFILL


def tokens_expired_in_changes(stage: Stage) -> Iterator[Run]:
    """all page tokens expire among what has changed"""
    stage.filled()
    yield BACKFILL
    stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:38])
    stage.api.clock.advance(60)
    stage.before(3, stage.api.expire_tokens)
    yield INCREMENTAL


def tokens_expired_for_good(stage: Stage) -> Iterator[Run]:
    """all page tokens expire in mid-walk, and nothing else says where to go on"""
    stage.filled()
    stage.before(3, stage.api.expire_tokens)
    yield BACKFILL.stopping
    yield AGAIN


def over_the_cap(stage: Stage) -> Iterator[Run]:
    """45 records where a search gives 30"""
    stage.filled(45)
    yield BACKFILL


def leaving_window(stage: Stage) -> Iterator[Run]:
    """records leave the window while its pages are read"""
    stage.filled(28)
    start = len(stage.read)
    stage.before(4, lambda: stage.api.update(*stage.read[start + 2][:3]))
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL
