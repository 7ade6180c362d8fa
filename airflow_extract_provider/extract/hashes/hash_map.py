"""What a hash map must do: say "unchanged" of a record before Postgres is asked. A third one is one file beside this,
tested by the same suite.

By key, an entry is the raw hash of what Postgres holds, or of another spelling of it. One that is missing costs a read.
One that is wrong would lose a change for ever; so a hash is answered only where nothing can have been committed since
it was put there:

* Whoever writes a row takes its entry out before the commit (`claim`), and puts the new hash in after it (`learn`).
* A hash is put in only where the marker still stands that one's own `look` or `claim` has left there. So a process that
  was stopped, and wakes when another one has written, puts nothing in; nor does one whose marker was flushed away.
* A `look` leaves a claim's marker alone until a later run has begun: the transaction may not be committed yet.
* A run that finds another identity, or not the run just before its own, begins with an empty map. So does one whose map
  was lost on the way, or is served from an older state of it.

What the caller owes:

* All who may write the object hold one fence, and `enter` comes after it was acquired: then no transaction is under way
  for which an earlier run had claimed.
* An answer counts only if a transaction that holds the fence is committed after it. A run that was taken over is told
  what was true once.
* A run that has a map and goes on without it, since it was away, and writes rows, writes in the same transaction that
  the identity has moved. A run that has no map is told by its number.
* What is learned with a look's marker was read after that look; what is learned with a claim's was committed after it.
  Nothing is learned of a transaction that may have been rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from airflow_extract_provider.extract.hashes.marker import Marker

__all__ = ["HashMap", "HashMapAwayError", "Looked", "Marker"]


class HashMapAwayError(Exception):
    """The map cannot be asked, or is not the one that this run has entered. It never reaches a user: the run goes on
    without the map. The message holds no secret, and no key of a record."""


class Looked(NamedTuple):
    """What a map knows: ``hashes`` in the order of the keys, None where it knows none, and ``marker`` stands now."""

    marker: Marker
    hashes: Sequence[bytes | None]


class HashMap(Protocol):
    """The raw hashes of the copy's records, as Postgres holds them: committed, and of records that are not deleted.

    Each method but `close` raises HashMapAwayError: the map cannot be reached, or refuses; or another server answers
    than at `enter`, or one that was started again. It may have been carried out all the same, now or later: that is
    safe. After it the map is of use again from the next `enter` on.

    One map serves one run at a time; the run's threads may share it.
    """

    def enter(self, copy: str, identity: str, number: int) -> bool:
        """Begin a run; true: there are entries of the runs before it.

        ``copy`` names the table that is copied into, in a few words. Of one copy only one state is kept. ``identity``
        names that state: what was kept under another one is dropped. All belongs into it that makes stored rows others
        than they were without a run: the server, its timeline and start, the table's file, the books' birth.
        ``number`` is the fence's: one more with each run of whoever may write the object.
        """
        ...

    def look(self, keys: Sequence[str]) -> Looked:
        """What is known of these keys, and a marker to `learn` with what Postgres says of the others."""
        ...

    def claim(self, keys: Sequence[str]) -> Marker:
        """Take entries out, before the commit of a transaction that has written these rows and has them locked. They
        stay out, whatever happens next, until somebody learns anew. Returns a marker to `learn` with what was
        committed."""
        ...

    def learn(self, marker: Marker, hashes: Mapping[str, bytes | None]) -> None:
        """Put in what is stored, where this marker still stands; None: a deleted record, of which nothing is kept."""
        ...

    def clear(self) -> None:
        """Drop all that is kept of the copy. Nothing more is known until the next `enter`."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
