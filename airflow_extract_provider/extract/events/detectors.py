"""From one stored change to its events: what the rules of an object find in it (law: once per change)."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import msgspec

from airflow_extract_provider.extract.errors import DetectorError, SourceError
from airflow_extract_provider.extract.events.change import ABSENT, BOTH_SIDES, Change, Seen, held_at
from airflow_extract_provider.extract.events.event import Event, event_id
from airflow_extract_provider.extract.exact import is_number, same, written
from airflow_extract_provider.extract.expressions import Expression
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.rules import Changed, Edge, Function, Python, Rule, When, type_name

__all__ = ["Detected", "Emitter", "Found"]

_BARE = ("created", "undeleted", "every")
"""Kinds whose events do not hold the record as it was before."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector written in Python found: ``data`` goes into the event as `detail`; ``name`` is its type."""

    data: Any = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Detected:
    """The events of one change, and which edges have fired now (True) or are armed again (False), by rule.

    ``state`` holds what is to be remembered anew, and nothing that stays as it was.
    """

    events: list[Event]
    state: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Emitter:
    """The rules of one object, ready to be asked about changes.

    ``birth`` is the number of the table's birth. ``needs_before``: a rule looks at the stored copy, or puts it into its
    events. ``remembers`` are the edges with a second threshold, by name and fingerprint: which of them have fired is
    kept by the caller, for each record.
    """

    source: str
    object: str
    birth: int
    needs_before: bool
    remembers: tuple[tuple[str, str], ...]
    _ready: tuple[_Ready, ...] = field(repr=False, compare=False)
    _keep: tuple[FieldPath, ...] | None = None
    _exclude: tuple[FieldPath, ...] = ()

    @classmethod
    def of(
        cls,
        source: str,
        object: str,
        rules: Sequence[Rule],
        birth: int,
        keep: Sequence[FieldPath] | None = None,
        *,
        exclude: Sequence[FieldPath] = (),
        told_early: bool = True,
    ) -> Emitter:
        """An emitter for the rules of an object; ``keep`` are the fields that its stored copy keeps, None: all;
        ``exclude`` are those of which a change is none. ``told_early``: events leave before the change is certain, so
        that ids must also tell apart what came of it.

        Raises SourceError: a detector's function cannot be loaded.
        """
        return cls(
            source,
            object,
            birth,
            any(rule.kind not in _BARE for rule in rules),
            tuple((rule.name, rule.fingerprint) for rule in rules if isinstance(rule, Edge) and rule.rearm is not None),
            tuple(_Ready.of(rule, source, object, told_early=told_early) for rule in rules),
            None if keep is None else tuple(keep),
            tuple(exclude),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in their order."""
        return tuple(ready.rule for ready in self._ready)

    def detect(self, change: Change, state: Mapping[str, bool], *, silent: bool = False) -> Detected:
        """The events of a change, in the order of the rules. ``state``: which edges are known to have fired.
        ``silent``: nobody is told, and only the edges that remember look at it.

        Raises DetectorError: a rule fails on the change.
        """
        seen = Seen(change, self._keep, self._exclude)
        events: list[Event] = []
        turned: dict[str, bool] = {}
        for ready in self._ready:
            if silent and not ready.remembers:
                continue
            if change.partly_known and not seen.knew(ready.rule.reads()):
                # As in a first backfill: what was before is not known, so nothing is told of it.
                continue
            try:
                found, fired = ready.watch(seen, state.get(ready.name))
                for number, each in enumerate(found):
                    events.append(self._event(ready, seen, each, number))
            except Exception as exc:
                raise self._failed(ready.rule, change, exc) from None
            if fired is not None and fired != state.get(ready.name, False):
                turned[ready.name] = fired
        return Detected(events, turned)

    def _event(self, ready: _Ready, seen: Seen, found: _Found, ordinal: int) -> Event:
        change = seen.change
        state = seen.state if ready.stateful else None
        return Event(
            event_id(self.source, self.object, self.birth, change.key, ready.name, change.revision, ordinal, state),
            self.source,
            self.object,
            found.type or ready.type,
            change.key,
            change.time,
            change.revision,
            change.after if ready.every else _data(ready, seen, found),
        )

    def _failed(self, rule: Rule, change: Change, exc: Exception) -> DetectorError:
        # The exception's words could hold values of the record; its type cannot.
        why = str(exc) if isinstance(exc, _NonsenseError) else f"failed on a change ({type(exc).__name__})"
        return DetectorError(
            f"the event rule `{rule.name}` {why}.",
            todo="Try it on this record, and correct it.",
            source=self.source,
            object=self.object,
            key=change.key,
        )


@dataclass(frozen=True, slots=True)
class _Ready:
    """A rule with all that is asked of it at each change. ``stateful``: its ids tell apart what became of the record;
    an edge is a fact that happened once, whatever else the record holds. ``bare``: its events hold no earlier record.
    """

    rule: Rule
    watch: _Watch
    name: str
    type: str
    remembers: bool
    stateful: bool
    every: bool
    bare: bool

    @classmethod
    def of(cls, rule: Rule, source: str, object: str, *, told_early: bool) -> _Ready:
        """A rule of an object."""
        edge = isinstance(rule, Edge)
        return cls(
            rule,
            _watch(rule, source, object),
            rule.name,
            rule.type_of(source, object),
            isinstance(rule, Edge) and rule.rearm is not None,
            told_early and not edge,
            rule.kind == "every",
            rule.kind in _BARE,
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """One event of a rule: its type where it is not the rule's, and what its data hold besides the record."""

    type: str | None = None
    more: Mapping[str, object] = field(default_factory=dict)


_Look: TypeAlias = tuple[Sequence[_Found], bool | None]
"""What a rule finds in a change, and whether it has fired; None: it does not remember that."""
_ONCE = (_Found(),)


class _Watch(Protocol):
    """A rule at work."""

    def __call__(self, seen: Seen, fired: bool | None, /) -> _Look: ...


class _NonsenseError(Exception):
    """A detector written in Python returned what is no event; says so in words without values."""


def _data(ready: _Ready, seen: Seen, found: _Found) -> bytes:
    told: dict[str, object] = {}
    if seen.change.after is not None:
        told["record"] = msgspec.Raw(seen.change.after)
    if not ready.bare and seen.change.before is not None:
        told["before"] = msgspec.Raw(seen.change.before)
        if seen.changed is not None:
            told["changed"] = seen.changed
    return msgspec.json.encode({**told, **found.more})


def _watch(rule: Rule, source: str, object: str) -> _Watch:
    """The rule, ready to look at changes."""
    if isinstance(rule, Edge):
        return partial(_edge, rule, Expression.compiled(rule.value))
    if isinstance(rule, Changed):
        return partial(_changed, rule)
    if isinstance(rule, When):
        return partial(_when, Expression.compiled(rule.condition))
    if isinstance(rule, Python):
        return partial(_python, _loaded(rule, source, object))
    return _always if rule.kind == "every" else partial(_of_kind, rule.kind)


def _always(_: Seen, __: bool | None) -> _Look:
    return _ONCE, None


def _of_kind(kind: str, seen: Seen, _: bool | None) -> _Look:
    return (_ONCE if seen.change.kind == kind else ()), None


def _changed(rule: Changed, seen: Seen, _: bool | None) -> _Look:
    if seen.change.kind not in BOTH_SIDES:
        return (), None
    if not rule.fields:
        return (_ONCE if seen.changed else ()), None
    pairs = [(held_at(seen.before, path), held_at(seen.after, path)) for path in rule.fields]
    differs = any(not same(before, after) for before, after in pairs)
    meant = all(_is_one_of(before, rule.from_) and _is_one_of(after, rule.to) for before, after in pairs)
    return (_ONCE if differs and meant else ()), None


def _is_one_of(value: Any, values: Sequence[Any] | None) -> bool:
    found = None if value is ABSENT else value
    return values is None or any(same(found, each) for each in values)


def _when(condition: Expression, seen: Seen, _: bool | None) -> _Look:
    met = condition.value({"before": seen.before, "after": seen.after})
    # JMESPath counts these as false, and 0 as true.
    return (() if met in (None, "", [], {}) or met is False else _ONCE), None


def _edge(rule: Edge, value: Expression, seen: Seen, remembered: bool | None) -> _Look:
    if seen.change.kind == "deleted":
        return (), None
    now = _number(value, seen.after)
    beyond = now is not None and rule.beyond(now)
    if rule.rearm is None:
        happens, fired = beyond and not _was_beyond(rule, value, seen), None
    else:
        happens, fired = _with_memory(rule, now, _had_fired(rule, value, seen, remembered))
    more = {"value": msgspec.Raw(written(now)), "threshold": msgspec.Raw(written(rule.threshold))} if happens else {}
    return ([_Found(more=more)] if happens else ()), fired


def _with_memory(rule: Edge, now: int | Decimal | None, fired: bool) -> tuple[bool, bool]:
    """Whether the edge happens, and whether it has fired from now on. Without a number, all stays as it was."""
    if now is None:
        return False, fired
    if rule.beyond(now):
        return not fired, True
    return False, fired and not rule.behind(now)


def _had_fired(rule: Edge, value: Expression, seen: Seen, remembered: bool | None) -> bool:
    """What a record of this key did in an earlier life does not count when it is created; nor what is remembered of a
    time when the rule was another, or was not there, if the stored copy has come back since."""
    if remembered is None or seen.change.kind == "created":
        return _was_beyond(rule, value, seen)
    was = None if seen.change.before is None else _number(value, seen.before)
    return remembered and not (was is not None and rule.behind(was))


def _was_beyond(rule: Edge, value: Expression, seen: Seen) -> bool:
    was = None if seen.change.before is None else _number(value, seen.before)
    return was is not None and rule.beyond(was)


def _number(value: Expression, record: Any) -> int | Decimal | None:
    found = value.value(record)
    return found if is_number(found) else None


def _python(function: Function, seen: Seen, _: bool | None) -> _Look:
    # Copies: what the function does to them is no other rule's business.
    found = function(_copied(seen.before), _copied(seen.after))
    if found is None:
        return (), None
    if isinstance(found, (str, bytes, Mapping, Found)) or not isinstance(found, Iterable):
        raise _NonsenseError("returned no list of what it found")
    return [_from_python(each) for each in found], None


def _from_python(found: Any) -> _Found:
    if isinstance(found, Mapping) and found.keys() <= {"name", "data"}:
        found = Found(**found)
    if not isinstance(found, Found):
        raise _NonsenseError("returned something that is neither a Found nor a mapping of `name` and `data`")
    try:
        name = None if found.name is None else type_name(found.name)
        return _Found(name, {} if found.data is None else {"detail": msgspec.Raw(written(found.data))})
    except (ValueError, TypeError):
        raise _NonsenseError("returned a name that is no event type, or data that are no JSON") from None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _loaded(rule: Python, source: str, object: str) -> Function:
    if not isinstance(rule.function, str):
        return rule.function
    module, _, name = rule.function.partition(":")
    try:
        found: Any = operator.attrgetter(name)(importlib.import_module(module))
    except Exception as exc:
        raise _unloadable(rule, f"cannot be loaded ({type(exc).__name__})", source, object) from exc
    if not callable(found):
        raise _unloadable(rule, "is no function", source, object)
    return cast("Function", found)


def _unloadable(rule: Python, why: str, source: str, object: str) -> SourceError:
    return SourceError(
        f"{rule.function} of the event rule `{rule.name}` {why}.",
        todo="Write it as module:function, and see that the module is installed where the tasks run.",
        source=source,
        object=object,
    )
