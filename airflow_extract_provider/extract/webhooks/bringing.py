"""Where the records that webhooks hold go: into one object after the other, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.store.birth import Born, born
from airflow_extract_provider.extract.store.brought import Heard
from airflow_extract_provider.extract.store.claims import Claims
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.judge import Coming
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.told import ToldOf, bring_in, note
from airflow_extract_provider.extract.webhooks.messages import Message

__all__ = ["Bringing", "Targets"]


@dataclass(slots=True)
class Targets:
    """Where the records of a source's objects go; each is made once, and again when its copy is begun anew. ``unfit``
    are the objects whose tables are missing or not what the source file describes, and why."""

    source: Source
    schema: str
    sink_of: Callable[[ApiObject], Sink | None]
    unfit: Mapping[str, ExtractError] = field(default_factory=dict)
    _made: dict[str, tuple[Born, Target]] = field(default_factory=dict)

    def of(self, claims: Claims, object: str) -> Target:
        """The target of an object, as its copy stands in this transaction."""
        now = born(claims.conn, self.schema, self.source.source, object)
        known = self._made.get(object)
        if known is None or known[0] != now:
            known = now, replace(Target.of(self.source, object, self.schema, now), brings="webhook")
            self._made[object] = known
        return known[1]


@dataclass(slots=True)
class Bringing:
    """What is brought into one object in a transaction, by as many parts as it takes. Their notes come last: a lock
    on a note, held while rows of the next part are locked, could cross those of a walk.

    ``at_once``: what Postgres would check when the transaction ends, it checks with each part.
    """

    conn: Connection
    target: Target
    sink: Sink | None
    at_once: bool = False
    told: list[ToldOf] = field(default_factory=list)

    def bring_in(self, messages: Sequence[Message]) -> Mapping[str, int]:
        """Bring messages in; if that raises, nothing of them is noted either."""
        arrived = sorted((each for each in messages if each.record is not None), key=lambda each: each.at)
        records = [_coming(self.target, each, turn) for turn, each in enumerate(arrived)]
        again = [each.key for each in messages if each.does == "refetch"]
        heard = [
            Heard(each.key, None if each.record is None else each.record.version, each.received_at, each.gone)
            for each in messages
        ]
        clock = max(each.received_at for each in messages)
        found = bring_in(self.conn, self.target, records, clock=clock, sink=self.sink, at_once=self.at_once)
        self.told.append(found.beside(again, heard))
        return found.counts

    def in_parts(self, messages: Iterable[Message]) -> list[Message]:
        """Messages in the order in which they are cut into parts: by their keys, so that parts lock rows in the same
        order as the whole. Where records are folded, which may write one row for several keys, as they came."""
        if self.target.folds:
            return sorted(messages, key=lambda each: each.at)
        return sorted(messages, key=lambda each: (each.key, each.at))

    def note(self) -> int:
        """Note what is to be read again, and what brought the changes; returns how many keys are noted."""
        return note(self.conn, self.target, self.told)


def _coming(target: Target, message: Message, turn: int) -> Coming:
    record = message.record
    assert record is not None
    return Coming(
        key=record.key,
        raw=record.raw,
        raw_hash=target.shape.raw_hash(record.raw),
        version=record.version,
        sent_at=message.received_at,
        number=message.nth,
        deleted=record.deleted,
        turn=turn,
        told=True,
        final=message.does == "final",
    )
