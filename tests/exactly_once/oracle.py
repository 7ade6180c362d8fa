"""What the events must be, told by somebody who knows nothing of how they are found: a trigger in the database logs
each stored version of each record, in the order of its row's lock, and the events are computed from that log anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from airflow_extract_provider.extract.store.connection import Connection

__all__ = ["RULES", "Told", "expected", "found", "logged", "transitions", "watch"]

RULES = [
    "created",
    "deleted",
    "undeleted",
    {"changed": {"field": "value", "name": "value.changed"}},
    {"rising_edge": {"value": "value", "above": 50, "name": "over.50"}},
    {"rising_edge": {"value": "value", "above": 50, "rearm_below": 20, "name": "over.50.from.20"}},
    {"falling_edge": {"value": "value", "below": 10, "name": "under.10"}},
    {"when": {"condition": "before.value < after.value", "name": "grew"}},
    {"every": "change"},
]
"""Rules of all kinds over the field `value`, for a source `shop`."""

Told: TypeAlias = Mapping[str, list[tuple[str, Any]]]
"""For each key its events in their order: the type, and the record's value after the change (None: deleted)."""

_WATCH = """
create table public.watched (
    n bigint generated always as identity primary key, key text, known boolean, was jsonb, was_gone boolean,
    now jsonb, gone boolean, revision bigint
);
create function public.watch() returns trigger language plpgsql security definer as $$
begin
    if tg_op = 'INSERT' then
        insert into public.watched (key, known, now, gone, revision)
        values (new.key, false, new.data, new.deleted_at is not null, new.revision);
    else
        insert into public.watched (key, known, was, was_gone, now, gone, revision)
        values (new.key, true, old.data, old.deleted_at is not null, new.data, new.deleted_at is not null,
                new.revision);
    end if;
    return null;
end $$;
"""


def watch(conn: Connection, table: str) -> None:
    """Log from now on what happens to the rows of a table."""
    conn.execute(_WATCH)
    conn.execute(f"create trigger watch after insert or update on {table} for each row execute function public.watch()")


@dataclass(frozen=True)
class Transition:
    """A record was one thing and is another. ``was`` is what was last known of it, also if it was gone; None: nobody
    had ever seen it alive."""

    n: int
    key: str
    was: Mapping[str, Any] | None
    was_gone: bool
    now: Mapping[str, Any]
    gone: bool
    revision: int


def transitions(conn: Connection) -> Iterator[Transition]:
    """The true changes that the log tells of, in its order."""
    asked = """select n, key, known, was, was_gone, now, gone, revision from public.watched
               where not known or was <> now or was_gone <> gone order by n"""
    alive: set[str] = set()
    for n, key, known, was, was_gone, now, gone, revision in conn.execute(asked):
        seen = known and key in alive
        if not gone:
            alive.add(key)
        if seen or not gone:
            yield Transition(n, key, was if seen else None, bool(was_gone), now, gone, revision)


def logged(conn: Connection) -> int:
    """How much the log holds by now."""
    row = conn.execute("select coalesce(max(n), 0) from public.watched").fetchone()
    assert row is not None
    return int(row[0])


def expected(conn: Connection, since: int = 0) -> Told:
    """The events that the rules ask for, of what was logged behind ``since``: before that was the silent baseline."""
    told: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)
    fired: dict[str, bool] = {}
    for each in transitions(conn):
        for type, rule in _TRUE:
            if rule(each, fired) and each.n > since:
                told[each.key].append((type, None if each.gone else each.now.get("value")))
    return told


def found(conn: Connection) -> Told:
    """The events in the outbox, in the order in which they were stored."""
    told: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)
    asked = """select key, type, case when type = 'shop.things.change' then data else data -> 'record' end
               from extract.outbox order by sequence"""
    for key, type, record in conn.execute(asked):
        told[key].append((type, record and record.get("value")))
    return told


_Rule: TypeAlias = Callable[[Transition, dict[str, bool]], bool]


def _value(record: Mapping[str, Any] | None) -> int | None:
    return None if record is None else record.get("value")


def _alive_both(each: Transition) -> bool:
    return each.was is not None and not each.gone


def _rises(each: Transition, _: dict[str, bool]) -> bool:
    was, now = _value(each.was), _value(each.now)
    return not each.gone and now is not None and now > 50 and not (was is not None and was > 50)


def _falls(each: Transition, _: dict[str, bool]) -> bool:
    was, now = _value(each.was), _value(each.now)
    return not each.gone and now is not None and now < 10 and not (was is not None and was < 10)


def _rises_from_20(each: Transition, fired: dict[str, bool]) -> bool:
    now = _value(each.now)
    if each.gone or now is None:
        return False
    rises = now > 50 and not fired.get(each.key, False)
    if now > 50:
        fired[each.key] = True
    elif now < 20:
        fired[each.key] = False
    return rises


def _grew(each: Transition, _: dict[str, bool]) -> bool:
    was, now = _value(each.was), _value(each.now)
    return _alive_both(each) and was is not None and now is not None and was < now


_TRUE: tuple[tuple[str, _Rule], ...] = (
    ("shop.things.created", lambda each, _: each.was is None and not each.gone),
    ("shop.things.deleted", lambda each, _: each.gone and not each.was_gone),
    ("shop.things.undeleted", lambda each, _: each.was is not None and each.was_gone and not each.gone),
    ("value.changed", lambda each, _: _alive_both(each) and _value(each.was) != _value(each.now)),
    ("over.50", _rises),
    ("over.50.from.20", _rises_from_20),
    ("under.10", _falls),
    ("grew", _grew),
    ("shop.things.change", lambda each, _: True),
)
