"""A stream of webhooks that come late, twice, in another order or never, beside walks that poll: nothing of it changes
the result, and the audit knows which never came."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from airflow_extract_provider.testing.hostile_store import Version
from tests.webhooks.hooked import ENDPOINT, Hooked

SOAK = "EXTRACT_SOAK" in os.environ
STREAM, RECORDS = (20_000, 500) if SOAK else (1_000, 50)
THIN = {
    **ENDPOINT,
    "types": {"thing.deleted": ENDPOINT["types"]["thing.deleted"], "thing.*": {"object": "things", "key": "data.id"}},
}


def happen(play: Hooked, chance: random.Random) -> None:
    """One change of the API: mostly an update; deletions, and new records in their place."""
    ids = play.api.ids
    kind = chance.choices(["update", "insert", "delete"], [90, 5, 5 if len(ids) > RECORDS // 2 else 0])[0]
    if kind == "update":
        play.api.update(chance.choice(ids), value=chance.randrange(100))
    elif kind == "insert":
        play.api.insert(1, value=chance.randrange(100))
    else:
        play.api.delete(chance.choice(ids))


def astray(versions: Sequence[Version], chance: random.Random) -> list[Version]:
    """What the network makes of them: a twentieth is lost, a fifth comes twice, and nothing in its order."""
    sent = [each for each in versions if chance.random() >= 0.05]
    sent += [each for each in sent if chance.random() < 0.2]
    chance.shuffle(sent)
    return sent


def play_out(play: Hooked, chance: random.Random) -> list[Version]:
    """The stream goes by; returns what was sent of it."""
    sent: list[Version] = []
    late: list[Version] = []
    part = 50
    for _ in range(STREAM // part):
        before = len(play.api.history())
        for _ in range(part):
            happen(play, chance)
        found = astray(play.api.history()[before:], chance)
        # Some come long after the others: older than what has happened since, deletions among it.
        cut = chance.randrange(len(found) + 1)
        play.put(*play.bodies(found[cut:] + late))
        sent += found[cut:] + late
        late = found[:cut]
    play.put(*play.bodies(late))
    return sent + late


def never_told(play: Hooked, sent: Sequence[Version]) -> set[tuple[str, int]]:
    """The changes, by key and revision, that polling has found and of which no webhook was sent: by what was stored,
    and what the test knows."""
    told = {(str(each.id), None if each.deleted else play.api.shown(each)["updated_at"]) for each in sent}
    rows = play.conn.execute(
        """select known.key, known.revision, case when known.kind <> 'deleted' then log.now ->> 'updated_at' end
           from extract.brought as known
           join public.watched as log on log.key = known.key and log.revision = known.revision
           where known.by <> 'webhook'"""
    )
    return {(key, revision) for key, revision, version in rows if (key, version) not in told}


def missed(play: Hooked) -> set[tuple[str, int]]:
    """Those that the audit counts as missed."""
    rows = play.conn.execute("select key, revision from extract.brought where told_at is null and due_at is not null")
    return {(key, revision) for key, revision in rows}


def audit(play: Hooked) -> Mapping[str, int]:
    """What the audit says once no webhook can be expected any more."""
    play.conn.execute("update extract.brought set due_at = clock_timestamp() where due_at is not null")
    row = play.conn.execute(
        "select sum(webhook), sum(poll) + sum(sweep) + sum(refetch), sum(late), sum(missed) from extract.webhook_audit"
    ).fetchone()
    assert row is not None
    return dict(zip(("webhook", "else", "late", "missed"), map(int, row), strict=True))


@pytest.mark.parametrize("seed", [1, 2])
def test_beside_walks_and_each_other(play: Hooked, measured: Callable[[str], None], seed: int) -> None:
    """Two runs that apply, an incremental walk and sweeps, all at once: the copy is the API, each true transition was
    told once, and the audit counts exactly what never came."""
    chance = random.Random(seed)
    play.hook(records=RECORDS)
    with play.beside("drain", "drain", "incremental", "rebackfill"):
        sent = play_out(play, chance)
    play.come_to_rest()
    play.check()
    told, never = audit(play), never_told(play, sent)
    # Some of them a webhook about an older state of the record has let it be read: these are not missed.
    assert missed(play) <= never
    assert told["missed"] == len(missed(play)) >= len(never) / 2
    assert told["webhook"] + told["else"] == play.count("extract.brought")
    assert (play.count("extract.inbox", "done_at is null"), play.count("extract.inbox_parked")) == (0, 0)
    measured(f"A stream of {STREAM:,} changes: {json.dumps(told)}")


def test_alone_the_audit_reports_what_was_dropped(play: Hooked) -> None:
    """Webhooks first, then a sweep: what it finds is what was dropped, and no later version has told of."""
    chance = random.Random(3)
    play.hook(records=RECORDS)
    sent = play_out(play, chance)
    play.drain()
    play.refetch()
    play.come_to_rest()
    play.check()
    told = audit(play)
    assert missed(play) == never_told(play, sent)
    assert told["missed"] == len(missed(play)) > 0
    assert told["webhook"] > told["else"]


def test_thin_ones(play: Hooked) -> None:
    """Of webhooks that hold only ids, the records are read: the result is the same."""
    chance = random.Random(4)
    play.hook(THIN, records=RECORDS)
    with play.beside("drain", "drain", "by_key"):
        play_out(play, chance)
    play.come_to_rest()
    play.check()
