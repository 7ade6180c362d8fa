"""A record that a webhook has asked for is noted by a sweep too: it is read for the webhook, whatever that finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from airflow_extract_provider.extract.store import refetch, sweep
from airflow_extract_provider.extract.store.connection import Connection
from tests.store.applier import Applier, a_record, clock

PLAIN = ("extract", "shop", "plain")
MakeApplier = Callable[..., Applier]


def noted(conn: Connection) -> list[tuple[str, str, bool]]:
    """What is noted: keys, why, and whether a webhook has asked."""
    rows = conn.execute("select key, reason, told_at is not null from extract.refetch order by key")
    return [(key, reason, told) for key, reason, told in rows]


def judged(one: Applier) -> sweep.Sweep:
    """A sweep that has not seen `a`, `b`, `c`; of the first two webhooks have asked, before it and after it."""
    one.apply([a_record(key) for key in "abc"])
    sweep.begin(one.conn, *PLAIN, 7, "test", None)
    refetch.note(one.conn, *PLAIN, ["a"], "webhook", told=True)
    open = sweep.opened(one.conn, *PLAIN)
    assert open is not None
    before = clock(one.conn)
    sweep.judge(one.conn, *PLAIN, one.target.table, open, before, lambda _: 10, insist=True)
    refetch.note(one.conn, *PLAIN, ["b"], "webhook", told=True)
    assert noted(one.conn) == [("a", "absent", True), ("b", "webhook", True), ("c", "absent", False)]
    return replace(open, judged_at=open.began_at)


def test_what_is_seen_after_all_is_read_for_the_webhook(applier: MakeApplier) -> None:
    """Whoever has seen it may have looked before the webhook came."""
    one = applier("plain")
    open = judged(one)
    sweep.see(one.conn, *PLAIN, open, ["a", "b", "c"], open.looked_at)
    assert noted(one.conn) == [("a", "webhook", True), ("b", "webhook", True)]


def test_a_sweep_that_is_given_up_leaves_the_webhooks_need(applier: MakeApplier) -> None:
    """Only what it has noted for itself is forgotten."""
    one = applier("plain")
    judged(one)
    sweep.begin(one.conn, *PLAIN, 8, "test", None)
    assert noted(one.conn) == [("a", "webhook", True), ("b", "webhook", True)]
