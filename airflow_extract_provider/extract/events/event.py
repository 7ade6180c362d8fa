"""One event, with the names of CloudEvents 1.0, and its computed id (law: once per change).

CloudEvents 1.0.2: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
import xxhash

__all__ = ["Event", "event_id"]

_JSON = "application/json"


class Event(msgspec.Struct, frozen=True):
    """Something that happened to one record, once.

    ``source`` and ``object`` name the object, ``key`` the record. ``time`` (aware) is the record's version; where it
    has none, Postgres's clock when the change was stored. ``revision`` is how often the stored copy had changed then.
    ``data`` is JSON text; None stands for "the record is gone" (a null message, which a compacted topic forgets the key
    by). ``baseline``: it tells of the state that was found at first, not of a change.
    """

    id: str
    source: str
    object: str
    type: str
    key: str
    time: datetime
    revision: int
    data: bytes | None
    baseline: bool = False

    def attributes(self) -> Mapping[str, str]:
        """The context attributes of CloudEvents, as the texts that headers carry; those with a value only."""
        told = {
            "specversion": "1.0",
            "id": self.id,
            "source": f"extract://{self.source}/{self.object}",
            "type": self.type,
            "subject": self.key,
            "time": self.time.isoformat().replace("+00:00", "Z"),
            "revision": str(self.revision),
        }
        if self.data is not None:
            told["datacontenttype"] = _JSON
        if self.baseline:
            told["baseline"] = "true"
        return told

    def as_json(self) -> bytes:
        """The event in CloudEvents' JSON format, with the digits of ``data`` as they are."""
        told: dict[str, object] = dict(self.attributes())
        told["revision"] = self.revision
        if self.baseline:
            told["baseline"] = True
        return msgspec.json.encode({**told, "data": msgspec.Raw(self.data or b"null")})


def event_id(
    source: str, object: str, birth: int, key: str, rule: str, revision: int, ordinal: int, state: bytes | None = None
) -> str:
    """The id of an event: the same whenever the same change of the same stored copy is found again.

    ``birth`` is the number of the table's birth: revisions count from 1 again in a table that was filled anew.
    ``ordinal`` tells events of one rule and change apart. ``state`` is a hash of the record after the change, for kinds
    whose receivers build on the record: a repeat after a crash that carries another state is another event.
    """
    told = [source, object, birth, key, rule, revision, ordinal, None if state is None else state.hex()]
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(told))
