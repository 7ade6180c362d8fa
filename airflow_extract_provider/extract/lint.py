"""What is legal in a source file, but dangerous, or likely a mistake. It looks at the file only: nothing is asked.

To add one: a function that tells it, in :data:`_CHECKS` under its name, that name in :data:`~.api_object.AdviceName`,
and a row in docs/checks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant
from airflow_extract_provider.extract.api.paginators.by_number import Overlapping
from airflow_extract_provider.extract.api.paginators.by_record import LastKey
from airflow_extract_provider.extract.api_object import AdviceName
from airflow_extract_provider.extract.costs import lasting, seconds_at
from airflow_extract_provider.extract.paging import SincePages
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.walks.rebackfill import passes_by

__all__ = ["ADVICE", "Advice", "lint"]

_Told: TypeAlias = tuple[str, str] | None
"""What it is and what to do about it, in words; None: all is well."""
_LATE_START = datetime(2015, 1, 1, tzinfo=timezone.utc)
"""Most APIs that are read today began before: a later `start` rather means "only from then on"."""
_OPEN = 50_000
"""Thousandths of a percent: a guard that lets half of everything go guards nothing."""
_FEW_REQUESTS = 2
"""A sweep takes so many requests at least."""
_EDGES = frozenset({"deleted", "undeleted"})


@dataclass(frozen=True, slots=True)
class Advice:
    """One piece of advice about an object. ``name`` is documented and does not change."""

    object: str
    name: AdviceName
    what: str
    todo: str


def lint(source: Source, requests: Mapping[str, int] | None = None) -> list[Advice]:
    """All advice about a source, object by object, without what the objects `accept`. ``requests``: about how many a
    sweep of each object takes, as far as it is known."""
    found = _advice(source, requests or {})
    return [each for each in found if each.name not in source.object(each.object).accept]


def _advice(source: Source, requests: Mapping[str, int]) -> Iterator[Advice]:
    for name, object in source.objects.items():
        for advice, check in _CHECKS.items():
            if (told := check(object)) is not None:
                yield Advice(name, advice, *told)
        if (told := _sweep_too_often(source, object, requests.get(name, _FEW_REQUESTS))) is not None:
            yield Advice(name, _TOO_OFTEN, *told)
        if (told := _shared_fold(source, object)) is not None:
            yield Advice(name, _SHARED, *told)
        if (told := _deletes_unsigned(source, name)) is not None:
            yield Advice(name, _UNSIGNED, *told)


def _deletes_unseen(object: ApiObject) -> _Told:
    if object.sweep is not None or object.deleted is not None:
        return None
    return "deletes are never seen: neither `deleted` nor `sweep` is declared", "add `sweep: {every: 7d}`"


def _changes_unseen(object: ApiObject) -> _Told:
    if object.sweep is not None or object.incremental:
        return None
    return (
        "changes are never seen: nothing asks for them, and no `sweep` finds them",
        "declare `version` with `since` if the API has them; else add `sweep: {every: 1d}`",
    )


def _deletes_withheld(object: ApiObject) -> _Told:
    if object.sweep is None or object.by_key is not None or not _proves_nothing(object):
        return None
    return (
        "a sweep deletes nothing here: a record that is missing in such a list may only have moved, and `by_key` is "
        "not declared",
        "declare `by_key`",
    )


def _proves_nothing(object: ApiObject) -> bool:
    """Whether what a complete reading of this list lacks is withheld: all of it, whatever came."""
    by_other = isinstance(paginator(object), FromInstant) and object.since_field != object.version
    return passes_by(object) or by_other


def _deletes_unconfirmed(object: ApiObject) -> _Told:
    if object.sweep is None or object.by_key is not None or _proves_nothing(object) or _passed_over(object):
        return None
    return "deletes are not confirmed: the list alone is the proof", "declare `by_key`, if the API has it"


def _passed_over(object: ApiObject) -> _Told:
    order = object.order
    if order is None or object.sweep is None or object.by_key is not None or _steady(object):
        return None
    return (
        f"ordered by `{'.'.join(order.field)}`, which may change: a record may jump over the place of a sweep, and "
        "would be taken for deleted",
        "declare `by_key`, or order by a field that never changes",
    )


def _steady(object: ApiObject) -> bool:
    """Whether the order is by the key, by the version, or by an instant of creation, as far as its name tells."""
    assert object.order is not None
    field = object.order.field
    known = field in (*object.key, object.version, object.since_field)
    name = field[-1].lower()
    return known or "creat" in name or "insert" in name or name.endswith("id")


def _undecided_stay(object: ApiObject) -> _Told:
    if object.by_key is not None or object.version is None or object.sweep is not None:
        return None
    return (
        "a record that the list cannot decide (one version, two contents) stays undecided: it cannot be read by key",
        "declare `by_key`, if the API has it",
    )


def _late_zero(object: ApiObject) -> _Told:
    if object.late or not object.incremental:
        return None
    return (
        "`late: 0s` says that each change is in the list at the instant it carries: one that is committed a moment "
        "later is lost",
        "give it the longest transaction or replica lag of the API, such as `late: 30s`",
    )


def _read_twice(object: ApiObject) -> _Told:
    if paginator(object).sure:
        return None
    return (
        "its pages move, and nothing holds on to a place in them: the list is read until two readings agree",
        "declare the `order` that the API keeps; or `since` with an order rising by it; or `stable: true` if a link or "
        "token holds a place",
    )


def _ties_unsettled(object: ApiObject) -> _Told:
    order = object.order
    if order is None or order.then or order.field in object.key or not isinstance(paginator(object), Overlapping):
        return None
    return (
        f"equal values of `{'.'.join(order.field)}` must come in one steady order, and no key settles it: else records "
        "are passed over",
        "let the API sort by the key too, and declare it: `order: [updated_at, id]`",
    )


def _overlap_by_version(object: ApiObject) -> _Told:
    order = object.order
    moves = isinstance(paginator(object), Overlapping | LastKey)
    if order is None or order.falling or order.field != object.version or not moves:
        return None
    return (
        "pages overlap in a list that is ordered by the version: a record that changes under way jumps to its end, and "
        "what lies before it may be passed over",
        "order by a field that never changes; or declare `since` with links, tokens or page numbers without a size",
    )


def _end_guessed(object: ApiObject) -> _Told:
    if not isinstance(object.pages, SincePages) or object.pages.more is not None or object.total is not None:
        return None
    return (
        "the end is guessed from the page's size: a server that sends smaller pages than `size.max` ends the list too "
        "early",
        "declare `pages.more` or `total`, if the API tells them; else give the size that the server really sends",
    )


def _start_late(object: ApiObject) -> _Told:
    if object.since is None or object.since.start < _LATE_START:
        return None
    return (
        f"`since.start` is {object.since.start:%Y-%m-%d}: records from before may be left out, in the backfill too",
        "give an instant before every record's",
    )


def _guard_open(object: ApiObject) -> _Told:
    if object.sweep is None or (object.sweep.max_deletes.share or 0) < _OPEN:
        return None
    return (
        f"`max_deletes: {object.sweep.max_deletes}` lets a list that is cut off delete half of the copy, or more",
        "give what may really go between two sweeps, such as `10%`",
    )


def _events_never(object: ApiObject) -> _Told:
    rules = sorted({rule.kind for rule in object.events} & _EDGES)
    if not rules or object.sweep is not None or object.deleted is not None:
        return None
    return f"the event rule `{'`, `'.join(rules)}` never fires: deletes are never seen", "add `sweep: {every: 7d}`"


def _private_keys_shown(object: ApiObject) -> _Told:
    if not object.private or object.hash.map is None:
        return None
    return (
        "the keys of private records stand in the hash map in clear text",
        "leave `hash.map` out, or guard that Redis",
    )


def _sweep_too_often(source: Source, object: ApiObject, requests: int) -> _Told:
    if object.sweep is None:
        return None
    seconds = seconds_at(source.limit, requests)
    if timedelta(seconds=seconds) < object.sweep.every:
        return None
    return (
        f"`sweep: {{every: {object.sweep.cadence}}}`, but its {requests:,} requests take {lasting(seconds)} at "
        "`limit`: one sweep follows the other at once",
        "sweep less often, or raise pages.size or `limit` if the API allows it",
    )


def _shared_fold(source: Source, object: ApiObject) -> _Told:
    if not (source.accounts and object.fold):
        return None
    return (
        "all accounts fold into the same rows, where keys of two accounts may be equal: the last one wins",
        "give each account a file of its own, with `where` that tells them apart; else accept it",
    )


def _deletes_unsigned(source: Source, name: str) -> _Told:
    if source.objects[name].by_key is not None:
        return None
    for endpoint, spec in source.webhooks.items():
        headers = [each for each in (spec.type.headers if spec.type else ()) if each not in spec.verify.reads]
        if headers and any(told.object == name and told.change == "deleted" for told in spec.types.values()):
            return (
                f"the header {headers[0]} says which webhooks of `{endpoint}` tell of a deletion, and it is not "
                "signed: who has recorded one webhook can send it again as another, and the record is deleted",
                "declare `by_key`: then a deletion is asked about; or read `type` from the body, if it stands there",
            )
    return None


_SHARED: AdviceName = "shared-fold"
_UNSIGNED: AdviceName = "deletes-unsigned"
_TOO_OFTEN: AdviceName = "sweep-too-often"
_CHECKS: Mapping[AdviceName, Callable[[ApiObject], _Told]] = {
    "changes-unseen": _changes_unseen,
    "deletes-unseen": _deletes_unseen,
    "deletes-withheld": _deletes_withheld,
    "deletes-unconfirmed": _deletes_unconfirmed,
    "end-guessed": _end_guessed,
    "events-never": _events_never,
    "guard-open": _guard_open,
    "late-zero": _late_zero,
    "overlap-by-version": _overlap_by_version,
    "passed-over": _passed_over,
    "private-keys-shown": _private_keys_shown,
    "read-twice": _read_twice,
    "start-late": _start_late,
    "ties-unsettled": _ties_unsettled,
    "undecided-stay": _undecided_stay,
}
ADVICE = (*_CHECKS, _SHARED, _TOO_OFTEN, _UNSIGNED)
"""The names of all advice."""
