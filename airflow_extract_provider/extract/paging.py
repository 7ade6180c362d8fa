"""How an API promises to page, filter and write its instants: the parts of an object's config, as frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from airflow_extract_provider.extract.page import FieldPath

__all__ = [
    "ByKey",
    "Duration",
    "Frozen",
    "KeyPages",
    "LastKeyPages",
    "LinkHeaderPages",
    "NextLinkPages",
    "OffsetPages",
    "Order",
    "PageNumberPages",
    "PageSize",
    "Pages",
    "PathText",
    "PathTexts",
    "PlaceText",
    "PositionPages",
    "Since",
    "SincePages",
    "SinglePage",
    "Text",
    "Timestamps",
    "TokenPages",
    "WrittenOrder",
    "field_path",
    "one_or_many",
]

_FIELD = re.compile(r"[A-Za-z_$@][A-Za-z0-9_$@-]*")
_LONGEST_DAYS = 3660
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)")
_UNITS = {
    "us": timedelta(microseconds=1),
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_YEAR, _MONTH, _ELSEWHERE = frozenset("Yy"), frozenset("mbB"), frozenset("scxXhDFTr")
"""Letters of `strptime` patterns: for a year, for a month, and those that a locale, a platform or a zone decides."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def field_path(value: Any) -> Any:
    """``a.b`` as ("a", "b"). Dotted names only: a path that picks and reshapes would lose the record's own bytes."""
    if isinstance(value, list):
        raise ValueError("this takes one field, with dots between its names, such as data.items")
    if not isinstance(value, str):
        return value
    parts = tuple(value.split("."))
    if not all(_FIELD.fullmatch(part) for part in parts):
        raise ValueError(f"{value!r} is no path: write field names with dots between them, such as data.items")
    return parts


def _place(value: Any) -> Any:
    """A path in the answer; ``@`` is the answer itself."""
    return () if value == "@" else field_path(value)


def one_or_many(value: Any) -> Any:
    """A single text as a list of it."""
    return [value] if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """What YAML read as a number or boolean, as it is sent in a query string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def _duration(value: Any) -> Any:
    """``30s``, ``5m``, ``1.5h``, ``7d`` as a timedelta. A number alone could be seconds or days."""
    if isinstance(value, timedelta):
        return value
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no duration: write a number with us, ms, s, m, h or d, such as 30s")
    days = float(found[1]) * (_UNITS[found[2]] / _UNITS["d"])
    if days > _LONGEST_DAYS:
        raise ValueError(f"{value!r} is longer than {_LONGEST_DAYS} days")
    return float(found[1]) * _UNITS[found[2]]


_Path: TypeAlias = Annotated[str, Field(pattern=rf"^{_FIELD.pattern}(\.{_FIELD.pattern})*$")]
_Order: TypeAlias = Annotated[str, Field(pattern=rf"^-?{_FIELD.pattern}(\.{_FIELD.pattern})*$")]
_Time: TypeAlias = Annotated[str, Field(pattern=rf"^\s*{_DURATION.pattern}\s*$")]
"""How a file spells them; the JSON schema is made of it."""

PathText: TypeAlias = Annotated[FieldPath, BeforeValidator(field_path, json_schema_input_type=_Path)]
PathTexts: TypeAlias = Annotated[
    tuple[PathText, ...], BeforeValidator(one_or_many, json_schema_input_type=_Path | list[_Path])
]
PlaceText: TypeAlias = Annotated[FieldPath, BeforeValidator(_place, json_schema_input_type=Literal["@"] | _Path)]
Text: TypeAlias = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | int | bool)]
Duration: TypeAlias = Annotated[
    timedelta, BeforeValidator(_duration, json_schema_input_type=_Time), Field(ge=timedelta(0))
]


class Frozen(BaseModel):
    """A part of a source file: frozen, and no key is taken that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class PageSize(Frozen):
    """The parameter that asks for a page size, and the largest the API documents. The server may send fewer."""

    send: str | None = Field(
        default=None,
        min_length=1,
        description="the parameter that carries the page size; without it, a template's `size` does",
    )
    max: int = Field(ge=2, description="records a page; at least 2, since pages overlap by a record")


class _SizedPages(Frozen):
    size: PageSize | None = Field(default=None, description="how to ask for a page size")


class _MorePages(_SizedPages):
    more: PathText | None = Field(
        default=None,
        description="where the answer says whether there is more; without it the walk asks until nothing new comes",
    )


class LastKeyPages(_MorePages):
    """Pages asked for by the key of the last record seen, such as Stripe's ``starting_after``."""

    by: Literal["last_key"]
    send: str | None = Field(
        default=None, min_length=1, description="the query parameter that carries the key to go on after"
    )


class KeyPages(_MorePages):
    """Pages asked for by a filter on the key, such as ``id_gt``; the records rise by it."""

    by: Literal["key"]
    send: str | None = Field(
        default=None, min_length=1, description="the query parameter that carries the key to go on after"
    )


class PageNumberPages(_MorePages):
    """Pages asked for by their number. They move when records before them go: they overlap, if `size` is sent."""

    by: Literal["page"]
    send: str | None = Field(
        default=None, min_length=1, description="the query parameter that carries the page's number"
    )
    first: int = Field(default=1, ge=0, le=1, description="the number of the first page: 0 or 1")


class OffsetPages(_MorePages):
    """Pages asked for by the number of records to pass over. They move when records before them go: so they overlap."""

    by: Literal["offset"]
    send: str | None = Field(default=None, min_length=1, description="the query parameter that carries the offset")


_Nothing: TypeAlias = Literal["null", "absent", "empty"]
_Last: TypeAlias = Annotated[
    tuple[_Nothing, ...], BeforeValidator(one_or_many, json_schema_input_type=_Nothing | list[_Nothing])
]


class TokenPages(_SizedPages):
    """Pages asked for by a token that the page before carried, in its body or in a header."""

    by: Literal["token"]
    take: PathText | None = Field(default=None, description="where the answer holds the next page's token")
    header: str | None = Field(
        default=None, min_length=1, description="the header that carries it; absent on the last page"
    )
    send: str | None = Field(default=None, min_length=1, description="the query parameter that carries the token")
    last: _Last = Field(
        default=("null",), description="what the token is on the last page: null, absent, empty, or several"
    )
    stable: bool = Field(
        default=True,
        description="false: the token is a page number in disguise, its pages move when records before them go",
    )
    cap: int | None = Field(
        default=None,
        ge=2,
        description="results that one search gives at most; windows of time are halved until each fits",
    )

    @model_validator(mode="after")
    def _one_place(self) -> TokenPages:
        _check_one_place(self.take, self.header)
        return self


class NextLinkPages(_SizedPages):
    """Pages asked for by a URL that the page before carried, in its body or as the whole of a header."""

    by: Literal["next_link"]
    take: PathText | None = Field(default=None, description="where the answer holds the next page's URL")
    header: str | None = Field(
        default=None, min_length=1, description="the header that carries it; absent on the last page"
    )
    last: _Last = Field(
        default=("null",), description="what the URL is on the last page: null, absent, empty, or several"
    )
    stable: bool = Field(
        default=False, description="true: the URL holds a place, no page number; nothing is passed over when records go"
    )

    @model_validator(mode="after")
    def _one_place(self) -> NextLinkPages:
        _check_one_place(self.take, self.header)
        return self


class LinkHeaderPages(_SizedPages):
    """Pages asked for by the ``Link`` header's URL with ``rel="next"`` (RFC 8288)."""

    by: Literal["link_header"]
    stable: bool = Field(
        default=False, description="true: the URL holds a place, no page number; nothing is passed over when records go"
    )


class PositionPages(_MorePages):
    """Pages asked for by version and key of the last record: templates use `after.version` and `after.key`."""

    by: Literal["position"]


class SincePages(_MorePages):
    """No pages: the list goes on only by asking `since` the last instant."""

    by: Literal["since"]


class SinglePage(_SizedPages):
    """Everything in one answer."""

    by: Literal["single"]


Pages: TypeAlias = Annotated[
    LastKeyPages
    | KeyPages
    | PageNumberPages
    | OffsetPages
    | TokenPages
    | NextLinkPages
    | LinkHeaderPages
    | PositionPages
    | SincePages
    | SinglePage,
    Field(discriminator="by"),
]


def _check_one_place(take: FieldPath | None, header: str | None) -> None:
    if (take is None) == (header is None):
        raise ValueError("say where the next page is told: either `take`, a path in the answer, or `header`")


class Order(Frozen):
    """The order the API promises: by these fields, rising, or the first one falling (``-created``). Checked while
    reading, the first field by value; a key after it settles ties."""

    field: PathText
    falling: bool = False
    then: tuple[PathText, ...] = ()

    @classmethod
    def parsed(cls, value: Any) -> Any:
        """``[-created]`` or ``[updated_at, id]`` as the mapping that pydantic reads."""
        value = one_or_many(value)
        if not isinstance(value, list | Mapping):
            return value
        if isinstance(value, Mapping) or not 1 <= len(value) <= 2 or not all(isinstance(name, str) for name in value):
            raise ValueError("order takes one field, or two, such as [created], [-created] or [updated_at, id]")
        if value[1:] and (value[0][:1] == "-" or value[1][:1] == "-"):
            raise ValueError("order takes two fields only where both rise, such as [updated_at, id]")
        return {"field": value[0].removeprefix("-"), "falling": value[0].startswith("-"), "then": value[1:]}


WrittenOrder: TypeAlias = Annotated[
    Order,
    BeforeValidator(
        Order.parsed, json_schema_input_type=_Order | Annotated[list[_Order], Field(min_length=1, max_length=2)]
    ),
]


def _known_format(value: str) -> str:
    letters = set(re.findall(r"%(.)", value))
    if value in ("rfc3339", "unix", "unix_ms", "unix_us"):
        return value
    if not letters:
        raise ValueError(f"{value!r} is none of rfc3339, unix, unix_ms, unix_us, nor a pattern with %")
    if "Z" in letters:
        raise ValueError("the name of a zone (%Z) cannot be read: write it as it stands, such as GMT, and give `zone`")
    if strange := sorted(letters & _ELSEWHERE):
        raise ValueError(f"%{strange[0]} means another thing on each machine: write the pattern out")
    days = (_YEAR & letters and _MONTH & letters and "d" in letters) or {"G", "V", "u"} <= letters
    if not (days or (_YEAR & letters and "j" in letters)):
        raise ValueError(f"{value!r} does not tell year, month and day: which instant is meant would be a guess")
    if "I" in letters and "p" not in letters:
        raise ValueError("%I without %p does not tell morning from evening")
    return value


class Timestamps(Frozen):
    """How the API writes instants. What is not written so is an error, never a guess."""

    format: str = Field(
        default="rfc3339",
        description="rfc3339, unix (seconds), unix_ms, unix_us, or a pattern such as '%d/%m/%Y %H:%M:%S'",
    )
    zone: str | None = Field(
        default=None, description="the zone of instants that carry none, such as UTC or Europe/Berlin"
    )

    @field_validator("format")
    @classmethod
    def _known(cls, value: str) -> str:
        return _known_format(value)

    @field_validator("zone")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no zone of the time zone database, such as Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _pattern_has_zone(self) -> Timestamps:
        if "%" in self.format and "%z" not in self.format and self.zone is None:
            raise ValueError("a pattern without %z needs `zone`: the zone that the API means")
        return self


class Since(Frozen):
    """The API's filter by instant. ``precision`` is the unit in which it compares: within one, it cannot tell."""

    send: str | None = Field(
        default=None, min_length=1, description="the query parameter; without it, a template's `since`"
    )
    until: str | None = Field(
        default=None, min_length=1, description="the parameter of the upper bound, which is exclusive"
    )
    inclusive: bool = Field(description="whether records of that very instant are in the answer (>=) or not (>)")
    precision: Duration = Field(
        default=timedelta(seconds=1), gt=timedelta(0), description="the unit in which it compares"
    )
    field: PathText | None = Field(default=None, description="the field it compares; by default the `version`")
    format: str | None = Field(
        default=None, description="how the filter's instants are written; by default as `timestamps`"
    )
    start: datetime = Field(default=_EPOCH, description="an instant before every record's")

    @field_validator("format")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return value if value is None else _known_format(value)

    @field_validator("start")
    @classmethod
    def _aware(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("start needs a zone, such as 1970-01-01T00:00:00Z")
        return value.astimezone(timezone.utc)


class ByKey(Frozen):
    """How one record is read by its key: the walk `by_key` and whatever needs proof of a delete ask so."""

    path: str = Field(pattern=r"^/\S.*$", description="a template over `key`, such as /v1/contacts/{{ key }}")
    record: PlaceText = Field(
        default=(), description="where the answer holds the record; @ when the answer is the record"
    )
