"""Event rules: which changes of records become events, as frozen values."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from airflow_extract_provider.extract.exact import EXACT, exact, is_number, read
from airflow_extract_provider.extract.expressions import Expression
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import Frozen, PathTexts, one_or_many

__all__ = [
    "Changed",
    "Created",
    "Deleted",
    "Edge",
    "Every",
    "FallingEdge",
    "Function",
    "Python",
    "RisingEdge",
    "Rule",
    "Rules",
    "Undeleted",
    "When",
    "parsed",
    "type_name",
    "unkept",
]

Function: TypeAlias = Callable[[Any, Any], Any]
"""A detector written in Python: given the record before and after the change, it returns what it found."""
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_SHORT = {"every": "of", "when": "condition", "python": "function"}
"""What a kind that is given a single word or text means by it."""


def type_name(value: str) -> str:
    """An event's type as it may be.

    Raises ValueError: it may not.
    """
    if not _TYPE.fullmatch(value):
        raise ValueError(f"{value!r}: use letters, digits, _, . and - (200 at most)")
    return value


def _expression(value: str) -> str:
    found = Expression.compiled(value)
    if found.field_of_boolean:
        raise ValueError(f"{value!r}: `!a.b` asks for the field b of `!a`, which has none; write `!(a.b)`")
    return found.text


def _threshold(value: Any) -> Any:
    """A number with all its digits; a text may write one, where YAML's numbers would be rounded."""
    found: Any = None
    with suppress(ValueError):
        found = read(value) if isinstance(value, str) else exact(value)
    if not is_number(found):
        raise ValueError("this is no number: write one such as 1000000 or 0.5")
    return Decimal(found)


def _values(value: Any) -> Any:
    """One value or a list of them as JSON values."""
    values = exact(value if isinstance(value, (list, tuple)) else [value])
    if not values:
        raise ValueError("the list of values is empty")
    return tuple(values)


def _function(value: Any) -> Any:
    if isinstance(value, str) and not _FUNCTION.fullmatch(value):
        raise ValueError(f"{value!r} names no function: write its module and name, such as my_package.detectors:large")
    return value


_Name: TypeAlias = Annotated[str, AfterValidator(type_name)]
_ExpressionText: TypeAlias = Annotated[str, AfterValidator(_expression)]
_Threshold: TypeAlias = Annotated[Decimal, BeforeValidator(_threshold)]
_Values: TypeAlias = Annotated[tuple[Any, ...] | None, BeforeValidator(_values, json_schema_input_type=Any)]
_FunctionName: TypeAlias = Annotated[
    str | Function, BeforeValidator(_function), WithJsonSchema({"type": "string", "pattern": f"^{_FUNCTION.pattern}$"})
]
_NAMED = "the events' type; by default `<source>.<object>.<kind>`"


class _Rule(Frozen):
    """What all rules have: a kind, and the name that was given."""

    kind: str
    named: _Name | None = Field(default=None, alias="name", description=_NAMED)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known = {spec.alias or name for name, spec in cls.model_fields.items()}
        if isinstance(data, Mapping) and (strange := sorted(map(str, data.keys() - known))):
            shown = ", ".join(sorted(known - {"kind"}))
            raise ValueError(f"`{strange[0]}` is no known key here; known are: {shown}")
        return data

    @property
    def name(self) -> str:
        """What the rule is called: by this its events are told from those of the object's other rules."""
        return self.named or self._word

    @property
    def _word(self) -> str:
        return self.kind

    def type_of(self, source: str, object: str) -> str:
        """The type of its events."""
        return self.named or f"{source}.{object}.{self._word}"

    def reads(self) -> tuple[FieldPath, ...] | None:
        """The fields of the stored copy without which it cannot decide; None: all of them."""
        return ()


class Created(_Rule):
    """The record was not there before."""

    kind: Literal["created"] = "created"


class Deleted(_Rule):
    """The record is gone."""

    kind: Literal["deleted"] = "deleted"


class Undeleted(_Rule):
    """The record was gone, and is there again."""

    kind: Literal["undeleted"] = "undeleted"


class Changed(_Rule):
    """One of the fields, or any, has another value; null and absent are two values. A list is compared as a whole."""

    kind: Literal["changed"] = "changed"
    fields: PathTexts = Field(
        default=(), description="the fields that count (or `field`, if it is one); by default all"
    )
    from_: _Values = Field(
        default=None, alias="from", description="the value that the field had, or several; null stands for absent too"
    )
    to: _Values = Field(
        default=None, description="the value that the field has now, or several; null stands for absent too"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_field(cls, data: Any) -> Any:
        """``field: status`` is short for ``fields: [status]``."""
        if not isinstance(data, Mapping) or "field" not in data:
            return data
        data = dict(data)
        field = data.pop("field")
        if "fields" in data:
            raise ValueError("say either `field` or `fields`")
        if not isinstance(field, str):
            raise ValueError("`field` takes one field; for several write `fields: [status, plan.amount]`")
        return {**data, "fields": field}

    @field_validator("fields")
    @classmethod
    def _some(cls, value: tuple[FieldPath, ...]) -> tuple[FieldPath, ...]:
        if not value:
            raise ValueError("the list of fields is empty; leave `fields` out where any field counts")
        return value

    @model_validator(mode="after")
    def _values_of_one_field(self) -> Changed:
        if len(self.fields) != 1 and (self.from_ or self.to):
            raise ValueError("`from` and `to` need exactly one field: say which by `field`")
        return self

    def reads(self) -> tuple[FieldPath, ...] | None:
        return self.fields or None


class Edge(_Rule):
    """A number passes a threshold. With a second threshold, it counts again only once it was back behind that one."""

    value: _ExpressionText = Field(description="the number: a field, or a JMESPath expression over the record")

    @property
    @abstractmethod
    def threshold(self) -> Decimal:
        """The number to pass."""

    @property
    @abstractmethod
    def rearm(self) -> Decimal | None:
        """The number to come back behind."""

    @abstractmethod
    def beyond(self, value: int | Decimal) -> bool:
        """Whether the number has passed the threshold; reaching it is not passing it."""

    @abstractmethod
    def behind(self, value: int | Decimal) -> bool:
        """Whether the number is back where the edge is armed again."""

    @model_validator(mode="after")
    def _in_order(self) -> Edge:
        if self.rearm is not None and self.beyond(self.rearm):
            raise ValueError("the number that arms the edge again lies past the threshold")
        return self

    @property
    def fingerprint(self) -> str:
        """A digest of what decides: what an edge remembers is worth nothing under another one."""
        rearm = None if self.rearm is None else str(EXACT.normalize(self.rearm))
        told = [self.kind, self.value, str(EXACT.normalize(self.threshold)), rearm]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()

    def reads(self) -> tuple[FieldPath, ...] | None:
        return _or_all(Expression.compiled(self.value).reads())


class RisingEdge(Edge):
    """A number rises above a threshold."""

    kind: Literal["rising_edge"] = "rising_edge"
    above: _Threshold = Field(description="the event happens when the number was not above this, and now is")
    rearm_below: _Threshold | None = Field(
        default=None, description="after an event, none until the number was below this; by default below `above`"
    )

    @property
    def threshold(self) -> Decimal:
        return self.above

    @property
    def rearm(self) -> Decimal | None:
        return self.rearm_below

    def beyond(self, value: int | Decimal) -> bool:
        return value > self.above

    def behind(self, value: int | Decimal) -> bool:
        return self.rearm_below is not None and value < self.rearm_below


class FallingEdge(Edge):
    """A number falls below a threshold."""

    kind: Literal["falling_edge"] = "falling_edge"
    below: _Threshold = Field(description="the event happens when the number was not below this, and now is")
    rearm_above: _Threshold | None = Field(
        default=None, description="after an event, none until the number was above this; by default above `below`"
    )

    @property
    def threshold(self) -> Decimal:
        return self.below

    @property
    def rearm(self) -> Decimal | None:
        return self.rearm_above

    def beyond(self, value: int | Decimal) -> bool:
        return value < self.below

    def behind(self, value: int | Decimal) -> bool:
        return self.rearm_above is not None and value > self.rearm_above


class When(_Rule):
    """A condition holds for a change: JMESPath over ``before`` and ``after``, each the record or null."""

    kind: Literal["when"] = "when"
    condition: _ExpressionText = Field(description="JMESPath over `before` and `after`")
    named: _Name = Field(alias="name", description="the events' type")

    @field_validator("condition")
    @classmethod
    def _knows_its_words(cls, value: str) -> str:
        firsts = {path[0] for path in _condition_reads(value) if path}
        if strange := sorted(firsts - {"before", "after"}):
            hint = " (true, false and null are written in backticks)" if strange[0] in ("true", "false", "null") else ""
            raise ValueError(f"the condition reads `{strange[0]}`, but knows only `before` and `after`{hint}")
        return value

    def reads(self) -> tuple[FieldPath, ...] | None:
        return _or_all({path[1:] for path in _condition_reads(self.condition)})


class Every(_Rule):
    """Each change, with the whole record; null when it is deleted."""

    kind: Literal["every"] = "every"
    of: Literal["change"] = Field(description="change")

    @property
    def _word(self) -> str:
        return self.of


class Python(_Rule):
    """What a function written in Python finds in a change."""

    kind: Literal["python"] = "python"
    function: _FunctionName = Field(description="the function, as module:name; it is given the record before and after")
    named: _Name = Field(alias="name", description="the events' type, where the function says no other")
    paths: PathTexts | None = Field(
        default=None, alias="reads", description="the fields of the stored copy that it looks at; by default all"
    )

    def reads(self) -> tuple[FieldPath, ...] | None:
        return self.paths


Rule: TypeAlias = Created | Deleted | Undeleted | Changed | RisingEdge | FallingEdge | When | Every | Python
_KINDS: Mapping[str, type[_Rule]] = {model.model_fields["kind"].default: model for model in get_args(Rule)}


def parsed(value: Any) -> Any:
    """What a file says of one rule, a word or a mapping of one word, as the mapping that pydantic reads."""
    if isinstance(value, _Rule):
        return value
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or not value:
        raise ValueError("a rule is a word, such as created, or has one: changed: {field: status}")
    if len(value) > 1:
        shown = ", ".join(f"`{name}`" for name in value)
        raise ValueError(f"{shown} stand side by side: begin each rule with a dash, and indent what belongs to it")
    kind, told = next(iter(value.items()))
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is no kind of rule; there are {', '.join(_KINDS)}")
    return {**_told(kind, told), "kind": kind}


def _told(kind: str, told: Any) -> Mapping[Any, Any]:
    """What stands below a rule's word."""
    if told is None:
        return {}
    if kind in _SHORT and not isinstance(told, Mapping):
        return {_SHORT[kind]: told}
    if not isinstance(told, Mapping):
        raise ValueError(f"`{kind}` takes a mapping, such as {kind}: {{name: my.{kind}}}")
    if "kind" in told:
        raise ValueError("`kind` is no known key here")
    return told


def _listed(value: Any) -> Any:
    value = one_or_many(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError("events is a list of rules, such as [created, deleted]")
    return value


def _distinct(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    seen: set[str] = set()
    for rule in rules:
        if rule.name in seen:
            raise ValueError(f"two rules are called `{rule.name}`: give one of them a `name`")
        seen.add(rule.name)
    return rules


Rules: TypeAlias = Annotated[
    tuple[Annotated[Rule, Field(discriminator="kind"), BeforeValidator(parsed)], ...],
    BeforeValidator(_listed),
    AfterValidator(_distinct),
]
"""An object's event rules, each with another name."""


def unkept(reads: Iterable[FieldPath] | None, keep: Iterable[FieldPath]) -> tuple[FieldPath, ...]:
    """The paths that are read, but not kept: neither they nor what they lie below. ``()`` is the whole record."""
    kept = set(keep)
    paths = [()] if reads is None else reads
    return tuple(path for path in paths if not any(path[:length] in kept for length in range(len(path) + 1)))


def _condition_reads(text: str) -> frozenset[FieldPath]:
    roots: frozenset[FieldPath] = frozenset({(), ("before",), ("after",)})
    return Expression.compiled(text).reads(roots)


def _or_all(paths: Iterable[FieldPath]) -> tuple[FieldPath, ...] | None:
    found = sorted(set(paths))
    return None if () in found else tuple(found)
