"""Several records that are folded into one row: in the order in which their webhooks came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_extract_provider.testing.hostile_store import Version
from tests.webhooks.hooked import ENDPOINT, Hooked, body

GONE = {"thing.deleted": {"object": "things", "record": "data", "change": "deleted"}}


def hook(play: Hooked, **fold: Any) -> None:
    """All records that are of group `g` make the row of that name."""
    play.conn.execute("create table public.org (grp text primary key, value text check (value <> '66'))")
    play.conn.execute("insert into public.org values ('g', 'before')")
    endpoint = {**ENDPOINT, "types": {**GONE, "thing.*": ENDPOINT["types"]["thing.*"]}}
    play.hook(endpoint, fold={"table": "public.org", "where": {"grp": "grp"}, "set": {"value": "value"}, **fold})


def grouped(play: Hooked, version: Version, **told: str) -> bytes:
    """The webhook of a version, whose record is of the group."""
    found: dict[str, Any] = json.loads(body(play, version))
    data: Mapping[str, Any] = found["data"]
    return json.dumps({**found, **told, "data": {**data, "grp": "g"}}).encode()


def changed(play: Hooked, key: int, value: int, **told: str) -> bytes:
    """A webhook of a change."""
    play.api.update(key, value=value)
    return grouped(play, play.api.history()[-1], **told)


def value(play: Hooked) -> str:
    """What the row says."""
    ((found,),) = play.conn.execute("select value from public.org").fetchall()
    return str(found)


@pytest.mark.parametrize("limit", [1, 500])
@pytest.mark.parametrize("keys", [(3, 9), (9, 3), (9, 3, 9, 3), (3, 9, 3)])
def test_the_last_that_came_stays(play: Hooked, keys: tuple[int, ...], limit: int) -> None:
    """Whatever the order of their keys, one by one and all at once."""
    hook(play)
    play.put(*(changed(play, key, 20 + nth) for nth, key in enumerate(keys)))
    play.drain(limit=limit)
    assert value(play) == str(19 + len(keys))


def test_copies_that_come_in_another_order(play: Hooked) -> None:
    """Of one record the newest stays, though it came first; what came behind it is folded behind it."""
    hook(play)
    older, newer = changed(play, 3, 31), changed(play, 3, 32)
    play.put(newer, older)
    play.drain()
    assert value(play) == "32"


@pytest.mark.parametrize("limit", [1, 500])
def test_one_ends_and_another_one_begins(play: Hooked, limit: int) -> None:
    """A deletion does not come behind the creation that it came before."""
    hook(play, deleted={"value": "gone"})
    play.put(changed(play, 3, 31))
    play.drain()
    ends = changed(play, 3, 32, type="thing.deleted")
    play.api.insert(1, value=77)
    play.put(ends, grouped(play, play.api.history()[-1]))
    play.drain(limit=limit)
    assert value(play) == "77"


def test_one_that_cannot_be_folded_leaves_the_order(play: Hooked) -> None:
    """It is found in parts, each folded by itself, and the last of the others stays."""
    hook(play)
    play.put(*(changed(play, key, told) for key, told in ((9, 1), (8, 2), (7, 3), (5, 4), (2, 5), (1, 6), (3, 66))))
    drained = play.drain()
    assert (drained.counts["updated"], drained.counts["parked"]) == (6, 1)
    assert value(play) == "6"
