"""What `jsonb` cannot hold, or would change without a word (law: fidelity)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import psycopg

__all__ = ["REFUSALS", "may_blame_a_row", "unstorable"]

REFUSALS = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)
"""What Postgres raises where a value cannot be stored: it is none of `jsonb`, or larger than that can hold."""

_AS_WRITTEN = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))


def may_blame_a_row(exc: psycopg.Error) -> bool:
    """Whether what is in one row may be to blame for an error, while others would be taken: a value that cannot be, a
    rule of the table, or what a trigger of the user's has raised, also by a code of its own (PostgreSQL documentation,
    appendix A and section 41.9.1: any five digits or upper-case letters)."""
    if isinstance(exc, (*REFUSALS, psycopg.IntegrityError)):
        return True
    return exc.sqlstate is not None and (exc.sqlstate.startswith("P0") or not _is_known(exc.sqlstate))


def _is_known(state: str) -> bool:
    try:
        psycopg.errors.lookup(state)
    except KeyError:
        return False
    return True


def unstorable(raw: bytes) -> str | None:
    """Why a record cannot be stored as it is, in words without its values; None: it can.

    `jsonb` keeps the last of two equal names in an object without a word, and refuses NUL characters and surrogates
    that are no pair (PostgreSQL documentation, section 8.14).
    """
    if b"\\u" not in raw and _comes_back(raw):
        return None
    try:
        # Numbers are not looked at: Python limits the digits of an int, and `jsonb` keeps them all.
        json.loads(raw, object_pairs_hook=_object, parse_int=float, parse_float=float)
        return _bad_escape(raw)
    except _Doubled as exc:
        return (
            f"the name `{exc}` stands twice in one object"
            if str(exc).isidentifier()
            else "a name stands twice in one object"
        )
    except ValueError:
        return "it is no JSON"
    except RecursionError:
        return "it is nested too deeply"


def _comes_back(raw: bytes) -> bool:
    """Whether it is the same when it is read and written again: then no name stands twice in it. That is four times
    faster than looking at each name; what is only written in another way is looked at all the same."""
    try:
        again = msgspec.json.encode(_AS_WRITTEN.decode(raw))
        return again == raw or again == msgspec.json.format(raw, indent=-1)
    except (msgspec.MsgspecError, RecursionError):
        return False


class _Doubled(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Doubled(name)
            seen.add(name)


def _bad_escape(raw: bytes) -> str | None:
    """Only an escape can bring in a NUL or half a surrogate pair: the bytes themselves are valid UTF-8."""
    if b"\\u" not in raw:
        return None
    text = json.dumps(json.loads(raw, parse_int=_nothing, parse_float=_nothing), ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "a text holds half a surrogate pair"
    return "a text holds a NUL character" if "\\u0000" in text.replace("\\\\", "") else None


def _nothing(_: str) -> None:
    return None
