"""What webhooks were worth: the day's counts, in a run's summary too, and a warning when they have stopped."""

from __future__ import annotations

import pytest

from airflow_extract_provider.extract.store import refetch, webhook_audit
from tests.test_cli import _connection, extract
from tests.webhooks.hooked import ENDPOINT, Hooked

WHOSE = ("extract", "shop", "things")


def forget_grace(play: Hooked) -> None:
    """No webhook can be expected any more."""
    play.conn.execute("update extract.brought set due_at = clock_timestamp() where due_at is not null")


def test_each_change_notes_what_brought_it(play: Hooked) -> None:
    """A webhook, the incremental walk, a sweep, a read by key; and what came late is told from what never came."""
    play.hook()
    play.api.update(1, value=61)
    play.put(*play.bodies(play.api.history()[-1:]))
    play.drain()
    play.api.update(2, value=62)
    late = play.bodies(play.api.history()[-1:])
    play.api.update(3, value=63)
    play.api.clock.advance(60)
    play.run()
    play.put(*late)
    play.drain()
    play.api.update(4, touch=False, value=64)
    play.api.delete(5)
    play.poll("rebackfill", "sweep")
    play.check()
    rows = play.conn.execute("select key, by, told_at is not null from extract.brought order by key").fetchall()
    assert rows == [
        ("1", "webhook", True),
        ("2", "poll", True),
        ("3", "poll", False),
        ("4", "sweep", False),
        ("5", "sweep", False),
    ]
    forget_grace(play)
    (told,) = webhook_audit.changes(play.conn, "extract")
    assert (told.webhook, told.poll, told.sweep, told.refetch, told.late, told.missed) == (1, 2, 2, 0, 1, 3)
    assert play.run().as_dict()["webhooks"] == {"webhook": 1, "otherwise": 4, "late": 1, "missed": 3, "expected": 0}


def test_what_may_still_come_is_not_missed(play: Hooked) -> None:
    """Until `grace` is over."""
    play.hook()
    play.api.update(1, value=61)
    play.api.clock.advance(60)
    told = play.run().webhooks
    assert told is not None
    assert (told["missed"], told["expected"]) == (0, 1)


def test_an_object_without_webhooks_notes_nothing(play: Hooked) -> None:
    """Nobody would ask."""
    play.hook()
    play.source.pop("webhooks")
    play.api.update(1, value=61)
    play.api.clock.advance(60)
    assert play.run().webhooks is None
    assert play.count("extract.brought") == 0


def test_a_subscription_that_has_gone_silent(play: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """A few that are missed are the network's; five in a row are none of it, until one comes again."""
    play.hook()
    for key in range(1, 6):
        play.api.update(key, value=60 + key)
    play.api.clock.advance(60)
    play.run()
    forget_grace(play)
    play.conn.execute("update extract.brought set told_at = at where key = '1'")
    assert webhook_audit.silence(play.conn, WHOSE) is None
    play.conn.execute("update extract.brought set told_at = null")
    silent = webhook_audit.silence(play.conn, WHOSE)
    assert silent == webhook_audit.Silence(None, 5)
    play.run()
    assert "webhooks have fallen silent: none has ever come, and 5 changes were found by polling" in caplog.text
    play.api.update(6, value=99)
    play.put(*play.bodies(play.api.history()[-1:]))
    play.drain()
    assert webhook_audit.silence(play.conn, WHOSE) is None


def test_webhooks_that_nothing_applies(
    play: Hooked, dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have come, and wait: the subscription is there, but the DAG is paused, or fails. A webhook that came after
    all that is missed, or to another address, says nothing of that."""
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", _connection(dsn))
    play.hook()
    for key in range(1, 6):
        play.api.update(key, value=60 + key)
    play.put(*play.bodies(play.api.history()[-5:]))
    play.api.clock.advance(60)
    play.run()
    forget_grace(play)
    silent = webhook_audit.silence(play.conn, WHOSE, ["main"])
    assert silent is not None
    assert silent.waiting is not None
    assert (silent.missed, silent.waiting.source, silent.waiting.count) == (5, "shop", 5)
    told = "webhooks have come, but nothing applies them: in the inbox are 5, the oldest since 20"
    assert str(silent).startswith(told)
    assert "Unpause the DAG `shop_webhooks`, or see why its runs fail." in str(silent)
    extract("inbox", "audit", "shop")
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"shop: {told}")
    assert line.endswith("Until then what they tell of counts as missed.")
    for other in (webhook_audit.silence(play.conn, WHOSE, ["other"]), _with_later_webhooks(play)):
        assert other == webhook_audit.Silence(None, 5)


def _with_later_webhooks(play: Hooked) -> webhook_audit.Silence | None:
    play.conn.execute("update extract.inbox set received_at = clock_timestamp()")
    return webhook_audit.silence(play.conn, WHOSE)


def test_a_webhook_of_an_older_version_is_none_of_the_change(play: Hooked) -> None:
    """That of the newer one, which polling has found, was missed all the same."""
    play.hook()
    play.api.update(1, value=61)
    older = play.bodies(play.api.history()[-1:])
    play.api.update(1, value=62)
    play.api.clock.advance(60)
    play.run()
    play.put(*older)
    assert play.drain().counts["stale"] == 1
    forget_grace(play)
    (told,) = webhook_audit.changes(play.conn, "extract")
    assert (told.poll, told.late, told.missed) == (1, 0, 1)


def test_a_deletion_that_a_webhook_asked_about_first(play: Hooked) -> None:
    """Before it is read by key a sweep notes it as well: the webhook has told of it all the same."""
    play.hook()
    play.api.delete(5)
    play.put(*play.bodies(play.api.history()[-1:]))
    play.drain()
    with play.connect() as conn:
        refetch.note(conn, *WHOSE, ["5"], "absent")
    play.refetch()
    play.check()
    assert play.conn.execute("select key, by, told_at is not null from extract.brought").fetchall() == [
        ("5", "webhook", True)
    ]


def test_only_the_kinds_of_change_that_webhooks_tell_of_can_be_missed(play: Hooked) -> None:
    """Beside an incremental walk one may subscribe to deletions alone: updates are found by polling, as meant."""
    deleted = {"thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"}}
    play.hook({**ENDPOINT, "types": deleted})
    for key in range(1, 8):
        play.api.update(key, value=60 + key)
    play.api.delete(9)
    play.api.clock.advance(60)
    play.run()
    play.poll("rebackfill", "sweep")
    forget_grace(play)
    (told,) = webhook_audit.changes(play.conn, "extract")
    assert (told.poll, told.missed) == (7, 1)
    assert webhook_audit.silence(play.conn, WHOSE) is None
