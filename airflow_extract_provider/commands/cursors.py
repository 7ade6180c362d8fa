"""The commands `airflow extract cursors ...`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from airflow_extract_provider.commands.command import (
    NotUnderstood,
    command,
    connect,
    printable,
    source_of,
    sources_folder,
    utc,
)
from airflow_extract_provider.extract.editing import (
    EDITABLE,
    Standing,
    set_cursor,
    standing,
    standings,
    start_over,
)
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.settings import Settings
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.rest_cursors import RestCursors, login_from

__all__ = ["list_cursors", "reset", "set_one", "show"]

_STATES = {
    "agrees": "the Variable agrees",
    "behind": "the Variable is behind the ledger, from where the next run goes on",
    "edited": "the Variable was EDITED: the next run goes back there, or refuses it",
    "missing": "the Variable is MISSING: the next run starts over",
    "not shown": "no Variable was written yet",
    "invalid": "the Variable is no cursor: the next run stops",
    "unknown": "written by another version of this package",
    "not readable": "the Variable is NOT READABLE: ",
}


@command
def list_cursors(args: Namespace) -> Iterator[str]:
    """`airflow extract cursors list`."""
    cursors, none, unread = _cursors(args), True, None
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        for each in standings(conn, args.schema, cursors, args.source, args.object):
            none, unread = False, unread or each.why
            yield _line(each)
    if unread is not None:
        raise unread
    if none:
        yield "The ledger knows no walk that has a cursor."


@command
def show(args: Namespace) -> Iterator[str]:
    """`airflow extract cursors show`."""
    cursors = _cursors(args)
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        found = standing(conn, Ledger(args.schema, args.source, args.object, _walk(args)), cursors)
    if found.head is None and found.text is None:
        raise NotUnderstood(f"Neither the ledger nor a Variable knows {args.walk} of {args.source}/{args.object}.")
    yield _line(found)
    yield f"\nThe Variable {found.key}:"
    yield from _lines(found.text or "there is none")
    yield "\nThe ledger:"
    yield from _lines(found.head.as_text() if found.head is not None else "nothing that this version understands")


@command
def set_one(args: Namespace) -> Iterator[str]:
    """`airflow extract cursors set`."""
    asked, walk, cursors = _asked(args), _walk(args), _cursors(args)
    decision = set_cursor(
        source_of(sources_folder(args), args.source),
        args.object,
        walk,
        asked,
        postgres=lambda: connect(args.conn_id),
        cursors=cursors,
        take_over=args.take_over,
        settings=Settings(schema=args.schema),
    )
    what = decision.what or "goes on from the ledger: that is where the walk stands already"
    yield f"{args.source}/{args.object} {walk}   written. The next run {what}."


@command
def reset(args: Namespace) -> Iterator[str]:
    """`airflow extract cursors reset`."""
    name, walk, cursors = f"{args.source}/{args.object}", _walk(args), _cursors(args)
    if args.yes != name:
        raise NotUnderstood(
            f"This deletes the cursor of {walk}, and the next run starts over: {_AGAIN[walk]}. No record is deleted, "
            f"and none is written that has not changed. If that is meant, repeat it with --yes {name}"
        )
    found = start_over(
        lambda: connect(args.conn_id),
        args.source,
        args.object,
        walk,
        cursors=cursors,
        schema=args.schema,
        take_over=args.take_over,
    )
    if not found:
        raise NotUnderstood(
            f"{name} {walk}: the ledger says that its cursor was written, and there is none at {cursors.shown_url}. "
            "Nothing was done. Is this the Airflow that runs it? If not, give --api-url. If it is, the Variable was "
            "deleted before, and the next run starts over without more ado."
        )
    yield f"{name} {walk}   the cursor is deleted. The next run starts over: {_AGAIN[walk]}."


_AGAIN = {
    "backfill": "it reads everything again, and the other walks begin anew when they run next",
    "incremental": "it reads again all that has changed since the backfill",
    "rebackfill": "a sweep that is under way is given up; the next one begins when it is due",
}


def _line(found: Standing) -> str:
    name = f"{printable(found.source)}/{printable(found.object)}   {printable(found.walk)}"
    state = _STATES[found.state] + (printable(found.why.what) if found.why is not None else "")
    if found.head is None:
        return f"{name}   {state if found.why is not None else _STATES['unknown']}"
    at = found.head.position
    parts = [name, f"{counted(at.pages, 'page')}, {counted(at.records, 'record')}"]
    parts += ["complete" if at.complete else "under way"]
    parts += [f"closed at {utc(at.closed)}"] if at.closed is not None else []
    return "   ".join([*parts, state])


def _lines(text: str) -> Iterator[str]:
    yield from map(printable, text.splitlines())


def _walk(args: Namespace) -> str:
    if args.walk not in EDITABLE:
        raise NotUnderstood(f"{args.walk!r} is no walk that has a cursor; choose one of: {', '.join(EDITABLE)}.")
    return str(args.walk)


def _asked(args: Namespace) -> str | datetime:
    given = [each for each in (args.text, args.file, args.closed) if each is not None]
    if len(given) != 1:
        raise NotUnderstood("What is to be written? Give one of --text, --file and --closed.")
    if args.text is not None:
        return str(args.text)
    if args.file is not None:
        try:
            return Path(args.file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as exc:
            raise NotUnderstood(f"--file: {args.file} cannot be read ({type(exc).__name__}).") from None
    try:
        instant = datetime.fromisoformat(args.closed)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise NotUnderstood(
            f"--closed: {args.closed!r} is no instant with a zone; write it such as 2026-03-01T00:00:00Z."
        )
    return instant


def _cursors(args: Namespace) -> RestCursors:
    from airflow.configuration import conf

    url = args.api_url or conf.get("api", "base_url", fallback=None)
    if not url or not url.startswith(("http://", "https://")):
        raise NotUnderstood("Where is Airflow's API? Give --api-url, or set [api] base_url.")
    return RestCursors(url, login_from(os.environ))
