"""Where an API sends webhooks, and what they tell of which records: a part of a source's config, as frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import (
    Duration,
    Frozen,
    PathText,
    PathTexts,
    PlaceText,
    field_path,
    one_or_many,
)
from airflow_extract_provider.extract.signing import Verify

__all__ = ["Endpoint", "Grace", "Pattern", "Slot", "Told"]

_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
_SLOT = re.compile(r"\{([^{}]*)\}")
_MARK = "header:"


@dataclass(frozen=True, slots=True)
class Slot:
    """What is filled in at one place of a pattern: a header's value (its name in lower case), or a field's."""

    header: str = ""
    field: FieldPath = ()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text with slots: ``texts`` stand around them, one more than there are ``slots``."""

    texts: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that it reads."""
        return tuple(each.header for each in self.slots if each.header)

    @property
    def fields(self) -> tuple[FieldPath, ...]:
        """The fields that it reads."""
        return tuple(each.field for each in self.slots if not each.header)

    def __str__(self) -> str:
        filled = ["{" + (_MARK + each.header if each.header else ".".join(each.field)) + "}" for each in self.slots]
        return self.texts[0] + "".join(slot + text for slot, text in zip(filled, self.texts[1:], strict=True))


def _pattern(value: Any) -> Any:
    """``{header:x-topic}`` and ``{data.kind}`` are filled in; a field's path alone is short for one slot."""
    if not isinstance(value, str):
        return value
    text = value if "{" in value or "}" in value else f"{{{value}}}"
    parts = _SLOT.split(text)
    if any("{" in each or "}" in each for each in parts[::2]):
        raise ValueError(f"{value!r} has a brace without its other")
    return Pattern(tuple(parts[::2]), tuple(_slot(each.strip()) for each in parts[1::2]))


def _slot(text: str) -> Slot:
    if not text.startswith(_MARK):
        return Slot(field=field_path(text))
    return Slot(header=_header(text.removeprefix(_MARK)))


def _header(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{name!r} is no header's name")
    return name.lower()


def _headers_only(value: Pattern | None) -> Pattern | None:
    if value is not None and value.fields:
        raise ValueError("dedupe reads headers only, such as {header:x-delivery-id}: the body is not read yet")
    return value


_PatternText: TypeAlias = Annotated[Pattern, BeforeValidator(_pattern, json_schema_input_type=str)]
_HeaderName: TypeAlias = Annotated[str, AfterValidator(_header)]
_Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(one_or_many, json_schema_input_type=str | list[str])]


class Told(Frozen):
    """What a webhook of a type tells: of which record, and whether the record itself is in it."""

    object: str = Field(description="the object whose record it is about")
    record: PlaceText | None = Field(
        default=None,
        description="where the message holds the whole record, as the list holds it; @ when the message is the record",
    )
    key: PathTexts | None = Field(
        default=None, description="where the message holds the key; by default where its `record` does"
    )
    change: Literal["changed", "deleted"] = Field(default="changed", description="changed (or created), or deleted")
    read: Literal["payload", "refetch"] | None = Field(
        default=None,
        description="payload: what is in the message is stored, if its version is newer; refetch: the record is read "
        "by its key. By default payload where there is a `record` and the object has a `version`, else refetch",
    )

    @model_validator(mode="after")
    def _finds_key(self) -> Told:
        if self.record is None and self.key is None:
            raise ValueError("say where the message holds the `key`, or the whole `record`")
        if self.read == "payload" and self.record is None:
            raise ValueError("`read: payload` needs to know where the message holds the `record`")
        return self


@dataclass(frozen=True, slots=True)
class Grace:
    """How long after a change was found otherwise a webhook of it may come, by what it was; None: none tells of it."""

    changed: timedelta | None = None
    deleted: timedelta | None = None

    def of(self, kind: str) -> timedelta | None:
        """That of a kind of change."""
        return self.deleted if kind == "deleted" else self.changed


class Endpoint(Frozen):
    """One address that the API sends webhooks to: how they are verified, and what they tell."""

    verify: Verify = Field(description="how the API signs: the name of a scheme, or its parts")
    secret: str = Field(min_length=1, description="the Airflow connection of type Webhook with the secret")
    max_bytes: int = Field(
        default=1_048_576, ge=1, le=64 * 1_048_576, description="the largest body that is taken, in bytes"
    )
    dedupe: Annotated[_PatternText | None, AfterValidator(_headers_only)] = Field(
        default=None,
        description="headers that hold the same for each try of one delivery, such as {header:x-github-delivery}: the "
        "same body with the same is stored once; null: whatever comes is stored",
    )
    headers: Annotated[
        tuple[_HeaderName, ...], BeforeValidator(one_or_many, json_schema_input_type=str | list[str])
    ] = Field(default=(), description="headers that are stored beside the body, with those that `type` reads")
    messages: PlaceText | None = Field(
        default=None, description="where a body holds a list of messages; null: it is one message"
    )
    type: _PatternText | None = Field(
        default=None,
        description="where a message holds its type: a field, or a text with {field} and {header:name} in it; null: "
        "all are of the one type in `types`",
    )
    id: PathText | None = Field(
        default=None, description="where a message holds an id that no other has; one that comes again is passed over"
    )
    types: Mapping[str, Told] = Field(
        default_factory=dict,
        description="what messages of a type tell; * stands for anything, an exact name goes first",
    )
    forward: _Names = Field(
        default=(), description="types that are passed on as events of their own; * stands for anything"
    )
    ignore: _Names = Field(
        default=(), description="types that are meant to tell nothing; any other one is counted as unknown"
    )
    grace: Duration = Field(
        default=timedelta(minutes=5),
        description="how long after a change was found otherwise its webhook may come before it counts as missed",
    )

    @model_validator(mode="after")
    def _typed(self) -> Endpoint:
        if self.type is None and (len(self.types) > 1 or self.forward or self.ignore):
            raise ValueError("several types need `type`, which says where a message holds its own")
        return self

    @model_validator(mode="after")
    def _keeps_no_login(self) -> Endpoint:
        if not self.verify.signs and self.verify.header in self.kept_headers:
            raise ValueError(f"the header {self.verify.header} holds the secret itself: it is not stored")
        return self

    @property
    def kept_headers(self) -> tuple[str, ...]:
        """The headers that are stored with a body, sorted: no others are, since some carry logins."""
        read = () if self.type is None else self.type.headers
        return tuple(sorted({*self.headers, *read}))

    def told_by(self, type: str) -> Told | None:
        """What a message of a type tells; None: nothing of a record."""
        if type in self.types:
            return self.types[type]
        return next((told for pattern, told in self.types.items() if fnmatchcase(type, pattern)), None)

    def forwards(self, type: str) -> bool:
        """Whether a message of a type is passed on."""
        return any(fnmatchcase(type, pattern) for pattern in self.forward)

    def ignores(self, type: str) -> bool:
        """Whether a type is meant to tell nothing."""
        return any(fnmatchcase(type, pattern) for pattern in self.ignore)
