"""From an object's templates to a request: what is inserted stays what it is, and never changes what is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.instants import instant, written
from airflow_extract_provider.extract.page import Request
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["by_key_request", "request"]

_NAMES = ("size", "token", "page", "offset", "since", "until", "after")
_MICROSECOND = timedelta(microseconds=1)
_INSERTED = re.compile("\0([^\0\1]*)\1")
"""A text in a body, until it is known that it stands inside a JSON text."""
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_Finalize: TypeAlias = Callable[[Any], str]


def request(
    object: ApiObject, values: Mapping[str, Any], send: Mapping[str, str], page: int, link: str | None = None
) -> Request:
    """The request for a page: the object's templates filled, and ``send`` laid over its parameters.

    ``values`` are what templates may use: size, token, page, offset, since and until (aware), after (with `version` and
    `key`); one that is left out is None. A parameter or header whose template renders to nothing is left out. Values
    are percent-encoded in the path; in the body a text is inserted as the inside of a JSON text, or whole by `json`.
    ``link`` is a URL that the API gave, to be asked instead.

    Raises SourceError: a template cannot be filled, a value does not fit into the path, or the body is no JSON.
    """
    filler = _Filler(object, _known(object, values))
    return Request(
        path=filler.path(object.path, "path"),
        params={**filler.each(object.params, "params"), **send},
        page=page,
        method=object.method,
        headers=filler.each(object.headers, "headers"),
        body=None if object.body is None else filler.body(object.body),
        link=link,
    )


def by_key_request(object: ApiObject, key: str, page: int) -> Request:
    """The request that reads the record of a key. A key of several fields is a list in the template: `{{ key[0] }}`.

    Raises SourceError: the object has no `by_key`, or the key does not fit into its path.
    """
    if object.by_key is None:
        raise _wrong(object, "records cannot be read by key", "Declare by_key.path.")
    value = key if len(object.key) == 1 else msgspec.json.decode(key, type=list[str])
    filler = _Filler(object, {"key": value})
    headers = filler.each(object.headers, "headers", spare=True)
    return Request(filler.path(object.by_key.path, "by_key.path"), page=page, headers=headers, key=key)


@dataclass(frozen=True, slots=True)
class _Filler:
    object: ApiObject
    values: Mapping[str, Any]

    def path(self, text: str, place: str) -> str:
        filled = self._filled(text, place, _in_path)
        # Clients resolve `.` and `..` even where they are encoded: another path would be asked.
        if {"", ".", ".."} & {*filled.split("?")[0].split("/")[1:]} - {*text.split("?")[0].split("/")[1:]}:
            raise _wrong(
                self.object, f"a value of `{place}` is empty or only dots, and would change the path", "Correct it."
            )
        return filled

    def each(self, texts: Mapping[str, str], place: str, *, spare: bool = False) -> dict[str, str]:
        """The texts by name, without those that a template makes empty. ``spare``: without all templates."""
        filled = {
            name: self._filled(text, f"{place}.{name}", _in_param)
            for name, text in texts.items()
            if not (spare and "{" in text)
        }
        return {name: text for name, text in filled.items() if text.strip() or "{" not in texts[name]}

    def body(self, text: str) -> str:
        filled = self._filled(text, "body", _in_body)
        try:
            # A bare x is no JSON: where it passes, it stands inside a text, and so does what is inserted for it.
            msgspec.json.decode(_INSERTED.sub("x", filled).encode(), type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeEncodeError):
            filled = "\0"
        body = _INSERTED.sub(lambda found: found[1], filled)
        if "\0" in body or _NUL.search(body):
            todo = "Put texts inside quotes, or write them as {{ token | json }}."
            raise _wrong(self.object, "the `body`, its values filled in, is no JSON", todo)
        return body

    def _filled(self, text: str, place: str, finalize: _Finalize) -> str:
        if "{" not in text:
            return text
        try:
            return _template(text, finalize).render(self.values)
        except SourceError as exc:
            raise exc.at(object=self.object.name) from None
        # An expression may fail in any way; the error's own text could hold a value.
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as exc:
            raise _wrong(
                self.object, f"the template `{place}` cannot be filled ({type(exc).__name__})", "Correct it."
            ) from None


def _wrong(object: ApiObject, what: str, todo: str) -> SourceError:
    return SourceError(f"{what}.", todo=todo, object=object.name)


@dataclass(frozen=True, slots=True)
class _Instant:
    """An instant in a template: written as the API writes it, or by a filter; an ``upper`` bound never earlier."""

    at: datetime
    text: str
    zone: str | None
    upper: bool = False

    def __str__(self) -> str:
        return self.text


class _Json(str):
    """A text that is JSON already."""

    __slots__ = ()


def _known(object: ApiObject, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as templates see them."""
    stamps, since = object.timestamps, object.since
    format, precision = (stamps.format, _MICROSECOND) if since is None else (since.format, since.precision)
    known = {**dict.fromkeys(_NAMES), **values}
    for name, value in known.items():
        if isinstance(value, datetime):
            upper = name == "until"
            text = written(value, format or stamps.format, stamps.zone, precision, upper=upper)
            known[name] = _Instant(value, text, stamps.zone, upper)
    after = known["after"]
    version = _version(object, getattr(after, "version", None))
    known["after"] = SimpleNamespace(version=version, key=getattr(after, "key", None))
    return known


def _version(object: ApiObject, version: Any) -> Any:
    """A version (an instant, or as the API wrote it) such that the filters can be used on it."""
    stamps = object.timestamps
    if isinstance(version, datetime):
        return _Instant(version, written(version, stamps.format, stamps.zone, _MICROSECOND), stamps.zone)
    at = instant(msgspec.json.encode(version), stamps) if isinstance(version, str | int) else None
    return version if at is None else _Instant(at, str(version), stamps.zone)


@lru_cache(maxsize=1024)
def _template(text: str, finalize: _Finalize) -> Template:
    return _environment(finalize).from_string(text)


@lru_cache(maxsize=3)
def _environment(finalize: _Finalize) -> SandboxedEnvironment:
    made = SandboxedEnvironment(undefined=StrictUndefined, finalize=finalize, autoescape=False)
    made.filters.update({name: _spared_none(filter) for name, filter in _FILTERS.items()})
    made.filters["json"] = _json
    return made


def _spared_none(filter: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value, *more: None if value is None else filter(value, *more)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | _Instant | StrictUndefined):
        return str(value)
    raise TypeError("no text and no number")


def _in_path(value: Any) -> str:
    return quote(_plain(value), safe="")


def _in_param(value: Any) -> str:
    return _plain(value)


def _in_body(value: Any) -> str:
    text = _plain(value)
    if not isinstance(value, str | _Instant) or isinstance(value, _Json):
        return text
    if isinstance(value, _Instant) and text.lstrip("-").isdigit():
        return text
    return f"\0{msgspec.json.encode(text).decode()[1:-1]}\1"


def _json(value: Any) -> _Json:
    return _Json(msgspec.json.encode(value, enc_hook=_plain).decode())


def _unix(format: str) -> Callable[[_Instant], int]:
    return lambda value: int(written(_at(value), format, None, _MICROSECOND, upper=value.upper))


def _iso(value: _Instant) -> str:
    return written(_at(value), "rfc3339", None, timedelta(seconds=1) if not _at(value).microsecond else _MICROSECOND)


def _format(value: _Instant, pattern: str) -> str:
    return written(_at(value), pattern, value.zone, _MICROSECOND, upper=value.upper)


def _at(value: Any) -> datetime:
    if not isinstance(value, _Instant):
        raise TypeError("no instant")
    return value.at.astimezone(timezone.utc)


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "s": _unix("unix"),
    "ms": _unix("unix_ms"),
    "us": _unix("unix_us"),
    "iso": _iso,
    "date": lambda value: _format(value, "%Y-%m-%d"),
    "format": _format,
}
"""What a template can make of an instant: unix seconds, milliseconds or microseconds, RFC 3339, a date, a pattern."""
