"""Hazards of pages that move, end or come again: records deleted, updated and inserted while they are read, servers
that send less than they were asked for, or the same again."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_extract_provider.testing.hostile import Fault
from tests.hazards.cell import AGAIN, BACKFILL, INCREMENTAL, Run, Stage


def deleted_before(stage: Stage) -> Iterator[Run]:
    """three records that were read are deleted between two pages"""
    stage.filled()
    stage.before(3, lambda: stage.api.delete(*stage.read[0][:3]))
    yield BACKFILL


def deleted_in_changes(stage: Stage) -> Iterator[Run]:
    """three records that were read are deleted between two pages of what has changed"""
    stage.filled()
    yield BACKFILL
    stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:38])
    stage.api.clock.advance(60)
    read = len(stage.read)
    stage.before(3, lambda: stage.api.delete(*stage.read[read][-4:-1]))
    yield INCREMENTAL


def anchor_deleted(stage: Stage) -> Iterator[Run]:
    """the last two records that were read are deleted"""
    stage.filled()
    stage.before(3, lambda: stage.api.delete(*stage.read[-1][-2:]))
    yield BACKFILL


def page_deleted(stage: Stage) -> Iterator[Run]:
    """the whole page that was read last is deleted"""
    stage.filled()
    stage.before(4, lambda: stage.api.delete(*(key for key in stage.read[-1] if key in stage.api.ids)))
    yield BACKFILL


def moved_by_update(stage: Stage) -> Iterator[Run]:
    """three records that were read are updated between two pages, and move"""
    stage.filled()
    stage.before(3, lambda: stage.api.update(*stage.read[0][:3]))
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def moved_silently(stage: Stage) -> Iterator[Run]:
    """records move from what is to come to what was read, and no filter finds them"""
    stage.filled()
    stage.before(3, lambda: stage.api.update(*stage.unread(), touch=False))
    yield BACKFILL


def moved_in_changes(stage: Stage) -> Iterator[Run]:
    """records that were read are updated again between two pages of what has changed"""
    stage.filled()
    yield BACKFILL
    stage.api.clock.advance(60)
    stage.api.update(*stage.api.ids[:38])
    stage.api.clock.advance(60)
    read = len(stage.read)
    stage.before(3, lambda: stage.api.update(*stage.read[read][-4:-1]))
    yield INCREMENTAL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def page_inserted(stage: Stage) -> Iterator[Run]:
    """a page of records is inserted at the head between two pages"""
    stage.filled()
    stage.before(3, lambda: stage.api.insert(24))
    yield BACKFILL
    yield AGAIN


def inserted_and_deleted(stage: Stage) -> Iterator[Run]:
    """records are inserted at the head, then others that were read are deleted"""
    stage.filled()
    stage.before(3, lambda: stage.api.insert(12))
    stage.before(4, lambda: stage.api.delete(*stage.api.ids[-20:]))
    yield BACKFILL
    yield AGAIN


def inserted_into_read(stage: Stage) -> Iterator[Run]:
    """records come among those that were read, by their key, between two pages"""
    stage.filled()
    stage.before(4, lambda: stage.api.insert(12))
    stage.before(5, lambda: stage.api.clock.advance(3600))
    yield BACKFILL
    stage.api.clock.advance(60)
    yield INCREMENTAL


def capped_size(stage: Stage) -> Iterator[Run]:
    """the server sends 4 records where 10 were asked for"""
    stage.filled()
    yield BACKFILL


def empty_page(stage: Stage) -> Iterator[Run]:
    """an empty page in the middle"""
    stage.filled()
    stage.api.fault(3, "empty_page")
    yield BACKFILL


def refused_end(stage: Stage) -> Iterator[Run]:
    """a page beyond the end is refused (404)"""
    stage.filled(40)
    yield BACKFILL
    stage.api.delete(*stage.api.ids[:3])
    stage.api.insert(12)
    stage.api.clock.advance(60)
    yield AGAIN


def grows_at_the_head(stage: Stage) -> Iterator[Run]:
    """records are inserted at the head before every page, to the end"""
    stage.filled()
    busy = [True]
    for number in range(2, 60):
        stage.before(number, lambda: busy and stage.api.insert(2))
    yield BACKFILL
    busy.clear()
    yield AGAIN


def shrinks_at_the_end(stage: Stage) -> Iterator[Run]:
    """the last page is cut short, and the list becomes shorter while its end is looked for"""
    stage.filled(24)
    stage.api.fault(3, "short_page")
    stage.before(4, lambda: stage.api.delete(*stage.api.ids[:6]))
    yield BACKFILL


def short_page(stage: Stage) -> Iterator[Run]:
    """a short page in the middle"""
    stage.filled()
    stage.api.fault(3, "short_page")
    yield BACKFILL


def repeated_token(stage: Stage) -> Iterator[Run]:
    """the answer leads to its own page again"""
    stage.filled()
    stage.api.fault(3, "repeat_token")
    yield BACKFILL.stopping
    yield BACKFILL


def repeating_tokens(stage: Stage) -> Iterator[Run]:
    """from the third page on each answer leads to its own page again"""
    stage.filled()
    stage.api.fault(3, "repeat_token", times=290)
    yield BACKFILL


def repeated_page(stage: Stage) -> Iterator[Run]:
    """the page before comes again, whole"""
    stage.filled()
    stage.api.fault(3, "repeat_page")
    yield BACKFILL.stopping
    yield BACKFILL


def misordered(stage: Stage) -> Iterator[Run]:
    """a page out of the order that the API claims"""
    stage.filled()
    stage.api.fault(3, "misorder")
    yield BACKFILL.stopping
    yield BACKFILL


def transient(stage: Stage) -> Iterator[Run]:
    """429, 503 and a broken connection between pages"""
    stage.filled()
    for number, fault in ((2, Fault("429")), (4, Fault("503")), (6, Fault("reset"))):
        stage.api.fault(number, fault)
    yield BACKFILL
