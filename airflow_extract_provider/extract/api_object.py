"""An object of a source: one table of an API, as a frozen value.

The config states what the API promises, in the words of its documentation; how it is walked follows from that. A key
that is not known is an error, and so is everything that would have to be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from jinja2 import Environment, TemplateSyntaxError, meta
from pydantic import Field, field_validator, model_validator

from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import (
    ByKey,
    Duration,
    Frozen,
    Pages,
    PathText,
    PathTexts,
    PlaceText,
    Since,
    Timestamps,
    TokenPages,
    WrittenOrder,
)
from airflow_extract_provider.extract.rules import Changed, Rules, unkept
from airflow_extract_provider.extract.sent import PathWithoutLogin, Sent
from airflow_extract_provider.extract.storing import (
    Columns,
    Folds,
    Hash,
    Keep,
    Publish,
    RecordHash,
    kept,
    read_beside,
)
from airflow_extract_provider.extract.sweeping import Sweep

__all__ = ["AdviceName", "ApiObject", "plain_name"]

AdviceName: TypeAlias = Literal[
    "changes-unseen",
    "deletes-unconfirmed",
    "deletes-unseen",
    "deletes-unsigned",
    "deletes-withheld",
    "end-guessed",
    "events-never",
    "guard-open",
    "late-zero",
    "overlap-by-version",
    "passed-over",
    "private-keys-shown",
    "read-twice",
    "shared-fold",
    "start-late",
    "sweep-too-often",
    "ties-unsettled",
    "undecided-stay",
]
"""What :mod:`~.lint` may advise: a misspelt name would be accepted for ever."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_REQUEST = re.compile(r"(GET|POST)\s+(/.*)", re.DOTALL)
_VALUES = frozenset({"size", "token", "page", "offset", "since", "until", "after", "account"})
"""What the templates of a list's request may use."""
_ACCOUNT = re.compile(r"\{\{\s*account\s*\}\}")
"""How a template names the account; its name stands there in the source of each account."""
_FILTERS = ("s", "ms", "us", "iso", "date", "format", "json")
"""What `api/templates.py` adds to Jinja's own filters."""
_SENDS = {"token": "token", "page": "page", "offset": "offset", "last_key": "after", "key": "after"}


class ApiObject(Frozen):
    """One table of an API: where it is, what identifies a record, how it is paged, what is promised about order."""

    name: str
    path: PathWithoutLogin = Field(description="the path below the connection's base URL; may be a template")
    method: Literal["GET", "POST"] = Field(default="GET", description="GET, or POST for a search with a body")
    params: Sent = Field(default_factory=dict, description="query parameters; may be templates; no secrets")
    headers: Sent = Field(default_factory=dict, description="headers; may be templates; no secrets")
    body: str | None = Field(default=None, description="the JSON body of a POST; a template")
    key: PathTexts = Field(min_length=1, description="the primary key: one field or several, nested ones with dots")
    pages: Pages = Field(description="how the API is paged; there is no default, since a wrong guess loses records")
    records: PlaceText = Field(description="where the answer holds the list of records; @ when the answer is the list")
    version: PathText | None = Field(default=None, description="the field that holds the instant of the last change")
    deleted: PathText | None = Field(default=None, description="the field that is true in a deleted record's tombstone")
    order: WrittenOrder | None = Field(
        default=None,
        description="the order that the API promises: [created], newest first [-created], or [updated_at, id]",
    )
    timestamps: Timestamps = Field(default=Timestamps(), description="how the API writes instants; by default RFC 3339")
    since: Since | None = Field(default=None, description="the API's filter by instant, which `incremental` asks by")
    late: Duration = Field(
        default=timedelta(seconds=60), description="how late the API may show a change, after the instant it gives it"
    )
    lookback: Duration = Field(
        default=timedelta(seconds=60), description="how much of what is complete each incremental run reads again"
    )
    total: PathText | None = Field(default=None, description="where the answer tells how many records there are in all")
    by_key: ByKey | None = Field(default=None, description="how one record is read by its key")
    sweep: Sweep | None = Field(
        default=None, description="how often everything is read again, to find deletes and silent changes"
    )
    on_bad_record: Literal["stop", "quarantine"] = Field(
        default="stop", description="stop at a record that cannot be stored, or set it aside and go on"
    )
    private: bool = Field(
        default=False, description="records are personal data: neither keys nor answers are shown in logs and errors"
    )
    keep: Keep = Field(default=None, description="what `data` keeps: all, none, or a list of fields")
    hash: Hash = Field(default=RecordHash(), description="what tells whether a record has changed")
    columns: Columns = Field(default_factory=dict, description="typed columns beside `data`, by name")
    fold: Folds = Field(default=(), description="fields written into other tables in the same transaction")
    events: Rules = Field(default=(), description="which changes become events")
    baseline: Literal["silent", "emit"] = Field(
        default="silent",
        description="whether the first backfill is silent, or its records become events marked `baseline`",
    )
    publish: Publish = Field(default="outbox", description="where events go: outbox, or a Kafka connection and topic")
    schema_: str | None = Field(
        default=None, alias="schema", description="the Postgres schema; by default the source's name"
    )
    table: str | None = Field(default=None, description="the Postgres table; by default the object's name")
    accept: tuple[AdviceName, ...] = Field(
        default=(), description="advice that `airflow extract lint` does not give on this object: it is meant as it is"
    )

    @model_validator(mode="before")
    @classmethod
    def _split_request(cls, data: Any) -> Any:
        """``request: POST /search`` is short for method and path."""
        if not isinstance(data, Mapping) or "request" not in data:
            return data
        data = dict(data)
        found = _REQUEST.fullmatch(str(data.pop("request")).strip())
        if found is None or data.keys() & {"method", "path"}:
            raise ValueError("request takes a method and a path, such as POST /v1/search, instead of `path`")
        return {**data, "method": found[1], "path": found[2]}

    @field_validator("name", "schema_", "table")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        return plain_name(value)

    @model_validator(mode="after")
    def _fields_stand_apart(self) -> ApiObject:
        if len({*self.key}) < len(self.key):
            raise ValueError("key names a field twice")
        fields = set(self.fields())
        for field in fields:
            if any(field[:length] in fields for length in range(1, len(field))):
                raise ValueError(f"{'.'.join(field)} lies below a field that is itself a key, version or order")
        return self

    @model_validator(mode="after")
    def _key_is_one_field(self) -> ApiObject:
        if self.pages.by in ("last_key", "key", "position") and len(self.key) != 1:
            raise ValueError(f"pages.by: {self.pages.by} sends one key, but `key` has several fields")
        return self

    @model_validator(mode="after")
    def _asked_once(self) -> ApiObject:
        """Each value is sent in exactly one way: by a parameter of its own, or by the templates."""
        used = self.used()
        since = self.since
        ways = {
            _SENDS.get(self.pages.by, ""): getattr(self.pages, "send", None),
            "size": self.pages.size.send if self.pages.size else None,
            "since": since.send if since else None,
            "until": since.until if since else None,
        }
        sends = [name for name in ways.values() if name]
        if twice := set(sends) & set(self.params):
            raise ValueError(f"params sets {sorted(twice)}, which `pages` or `since` sends itself")
        if len(set(sends)) < len(sends):
            raise ValueError("`pages` and `since` send two values by one parameter")
        for name, sent in ways.items():
            if name in used and sent:
                raise ValueError(f"`{name}` is sent as {sent} and by a template: one of the two")
        needed = {_SENDS.get(self.pages.by, "")} | ({"since"} if since else set())
        if self.pages.by == "position":
            needed.add("after")
        if missing := {name for name in needed - {""} if not ways.get(name) and name not in used}:
            what = "pages" if missing != {"since"} else "since"
            raise ValueError(f"{what}.send is missing, and no template uses {' or '.join(sorted(missing))}")
        if since is None and used & {"since", "until"}:
            raise ValueError("a template uses since or until, but `since` is not declared")
        return self

    @model_validator(mode="after")
    def _list_has_room(self) -> ApiObject:
        told = {"pages.take": getattr(self.pages, "take", None), "pages.more": getattr(self.pages, "more", None)}
        told["total"] = self.total
        for name, path in told.items():
            if path is not None and not self.records:
                raise ValueError(f"the answer is the list itself (records: @): `{name}` finds nothing beside it")
        return self

    @model_validator(mode="after")
    def _body_is_posted(self) -> ApiObject:
        if self.body is not None and self.method != "POST":
            raise ValueError("a body is sent only with POST, such as request: POST /v1/search")
        return self

    @model_validator(mode="after")
    def _since_compares_something(self) -> ApiObject:
        if self.since is not None and self.since_field is None:
            raise ValueError("since needs `version`, or a `field` of its own, that it compares")
        pattern = (self.since and self.since.format) or ""
        if "%" in pattern and "%z" not in pattern and self.timestamps.zone is None:
            raise ValueError("since.format without %z needs timestamps.zone: the zone that the API means")
        if self.pages.by == "since" and not self.since_ordered:
            raise ValueError("pages.by: since needs `since`, and `order` rising by the field that it compares")
        if self.pages.by == "position" and not self._ordered_by_position:
            raise ValueError("pages.by: position needs `version`, and `order: [<version>, <key>]`")
        by_version = self.pages.by == "position" or self._newest_first
        if by_version and self.since_field not in (None, self.version):
            raise ValueError("since.field is not the `version`, by which changes are asked for here: leave `since` out")
        if self.pages.by == "key" and (self.order is None or self.order.falling or self.order.field != self.key[0]):
            raise ValueError("pages.by: key needs `order` rising by the key")
        return self

    @model_validator(mode="after")
    def _cap_can_be_kept(self) -> ApiObject:
        if isinstance(self.pages, TokenPages) and self.pages.cap is not None:
            bounded = self.since is not None and (self.since.until or "until" in self.used())
            if not bounded or self.total is None:
                raise ValueError(
                    "pages.cap needs `since` with `until`, and `total`: windows are halved until each fits"
                )
        return self

    @model_validator(mode="after")
    def _rules_read_what_is_kept(self) -> ApiObject:
        """What was before is taken from the stored copy."""
        for rule in self.events:
            if lost := self._lost(rule.reads()):
                raise ValueError(
                    f"the event rule {rule.name} reads {lost}, which `keep` ({kept(self.keep)}) leaves out"
                )
        for each in self.fold:
            if each.deleted != "keep" and (lost := self._lost(tuple(each.where.values()))):
                raise ValueError(f"fold.where reads {lost} of deleted records, which `keep` leaves out")
        return self

    @model_validator(mode="after")
    def _excluded_is_not_read(self) -> ApiObject:
        """It would be out of date without a word."""
        read = {"key, version, deleted, order or since": tuple(self.fields()), **read_beside(self.columns, self.fold)}
        for rule in self.events:
            # To `changed` without fields, what is excluded is no change either; another rule may look at it.
            whole = () if isinstance(rule, Changed) else ((),)
            read[f"the event rule {rule.name}"] = whole if (reads := rule.reads()) is None else reads
        self.hash.check(read)
        return self

    def _lost(self, reads: tuple[FieldPath, ...] | None) -> str:
        """Which of these paths the stored copy does not have, in words."""
        lost = () if self.keep is None else unkept(reads, self.keep)
        return ", ".join(".".join(path) or "the whole record" for path in lost)

    @property
    def key_name(self) -> str:
        """The key's fields, as people and positions name them."""
        return ", ".join(".".join(path) for path in self.key)

    @property
    def since_field(self) -> FieldPath | None:
        """The field that `since` compares; None without `since`."""
        return None if self.since is None else self.since.field or self.version

    @property
    def since_ordered(self) -> bool:
        """Whether the records rise by the field that `since` compares: a walk can be taken up at any instant."""
        return self.since is not None and self.order is not None and self._rises_by(self.since_field)

    @property
    def incremental(self) -> bool:
        """Whether the API can be asked for what has changed: by `since`, by position, or newest first."""
        if self.version is None:
            return False
        return self.since_field == self.version or self.pages.by == "position" or self._newest_first

    @property
    def windowed(self) -> bool:
        """Whether the API can be asked for what lies between two instants, or at least from one on."""
        return self.since is not None or self.pages.by == "position" or self._newest_first

    @property
    def _newest_first(self) -> bool:
        return self.order is not None and self.order.falling and self.order.field == self.version

    @property
    def _ordered_by_position(self) -> bool:
        return self.version is not None and self._rises_by(self.version) and self.order.then == self.key  # type: ignore[union-attr]

    def _rises_by(self, field: FieldPath | None) -> bool:
        return self.order is not None and not self.order.falling and self.order.field == field

    def fields(self) -> Iterator[FieldPath]:
        """The fields of a record that are read: key, version, tombstone, order, what `since` compares."""
        yield from self.key
        for field in (self.version, self.deleted, self.order and self.order.field, self.since_field):
            if field:
                yield field
        yield from self.order.then if self.order else ()

    def used(self) -> frozenset[str]:
        """The values that the templates of a list's request use."""
        texts = [self.path, *self.params.values(), *self.headers.values(), self.body or ""]
        return frozenset().union(*(_used(text) for text in texts))

    @property
    def names_account(self) -> bool:
        """Whether a template holds the account's name."""
        return "account" in self.used() or (self.by_key is not None and "account" in _used(self.by_key.path))

    def of_account(self, account: str) -> ApiObject:
        """The object as one account has it: its name in place of ``{{ account }}``, and a table of its own."""

        def filled(text: str) -> str:
            return _ACCOUNT.sub(account, text)

        over: dict[str, Any] = {"path": filled(self.path)}
        over |= {
            each: {name: filled(text) for name, text in getattr(self, each).items()} for each in ("params", "headers")
        }
        over["body"] = None if self.body is None else filled(self.body)
        if self.by_key is not None:
            over["by_key"] = self.by_key.model_copy(update={"path": filled(self.by_key.path)})
        if self.schema_ is not None:
            # Without one it is the source's name, which the account is a part of.
            over["table"] = f"{self.table or self.name}_{account}"
        return self.model_copy(update=over)

    def with_page_size(self, most: int) -> ApiObject:
        """The object with pages of so many records at most; unchanged where it asks for no size."""
        size = self.pages.size
        if size is None or self.pages.by == "single":
            return self
        smaller = size.model_copy(update={"max": min(size.max, most)})
        return self.model_copy(update={"pages": self.pages.model_copy(update={"size": smaller})})

    @model_validator(mode="after")
    def _templates_know_their_values(self) -> ApiObject:
        if strange := self.used() - _VALUES:
            raise ValueError(f"a template uses {sorted(strange)}; known are {sorted(_VALUES)}")
        texts = (self.path, *self.params.values(), *self.headers.values(), self.body or "")
        texts += (self.by_key.path,) if self.by_key else ()
        if any("account" in _used(_ACCOUNT.sub("", text)) for text in texts):
            raise ValueError("a template uses `account` in another way than as {{ account }}: its name is put there")
        if self.by_key is not None and _used(self.by_key.path) - {"account"} != {"key"}:
            raise ValueError("by_key.path is a template over `key`, such as /v1/contacts/{{ key }}")
        return self


def _used(text: str) -> frozenset[str]:
    try:
        parser = Environment(autoescape=False)  # noqa: S701 - parsed only
        parser.filters.update(dict.fromkeys(_FILTERS, str))
        return frozenset(meta.find_undeclared_variables(parser.parse(text)))
    except TemplateSyntaxError as exc:
        raise ValueError(f"a template is wrong in its line {exc.lineno}: {exc.message}") from None


def plain_name(value: str | None) -> str | None:
    """A name that can stand in Postgres, Airflow and paths. Raises ValueError."""
    if value is not None and not _NAME.fullmatch(value):
        raise ValueError(f"{value!r}: use a lower-case letter, then lower-case letters, digits and _ (63 at most)")
    return value
