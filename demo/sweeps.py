"""An independent judge of sweeps: what two full listings say was changed in between, and what the sweep reports.

It shares no code with the package, on purpose: a mistake there cannot hide itself here.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from demo.behind import Done
from demo.verify import Listing, canonical

Report = Mapping[str, Any]
"""What a sweep says of itself: numbers by kind, and ``fields``, numbers by field."""

COUNTS = ("new", "missed", "changed", "silent", "late", "deleted", "confirmed")
NEVER = ("still_there", "withheld", "returned")
KINDS = ("stored", "seen", "absent", *COUNTS, *NEVER)


@dataclass(frozen=True)
class SweepVerdict:
    """How what one sweep reports compares with the listings; ``wrong`` says each difference in words."""

    object: str
    expected: Report
    wrong: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every number is the same, wherever it is reported."""
        return not self.wrong

    def complaint(self) -> str:
        """Say what differs; empty when equal."""
        return f"{self.object}: {'; '.join(self.wrong)}" if self.wrong else ""


@dataclass(frozen=True)
class Swept:
    """One object between two looks at all of it, while nobody else wrote.

    ``version`` is the field with the instant of the last change, None where there is none. ``by_key``: whether a sweep
    asks the API for each record that it misses in the list.
    """

    before: Listing
    after: Listing
    version: str | None = None
    by_key: bool = False

    def done(self) -> Done:
        """What was done to its records."""
        both = self.before.keys() & self.after.keys()
        changed = frozenset(key for key in both if canonical(self.before[key]) != canonical(self.after[key]))
        moved = frozenset(key for key in changed if self._instant(self.before, key) != self._instant(self.after, key))
        new, gone = self.after.keys() - self.before.keys(), self.before.keys() - self.after.keys()
        return Done(changed - moved, moved, frozenset(new), frozenset(gone))

    def report(self) -> Report:
        """What a sweep has to say of it.

        What has come with an instant not above the newest one of the look before should have been brought by the
        incremental walk: all up to there was copied by then.
        """
        done, versioned = self.done(), self.version is not None
        newest = max((self._instant(self.before, key) for key in self.before), default=0)
        fields = Counter(path for key in done.silent for path in differing(self.before[key], self.after[key]))
        return {
            "stored": len(self.before.keys() | self.after.keys()),
            "seen": len(self.after),
            "absent": len(done.removed),
            "new": len(done.imported),
            "missed": sum(versioned and self._instant(self.after, key) <= newest for key in done.imported),
            "changed": len(done.silent) + len(done.backdated),
            "silent": len(done.silent) if versioned else 0,
            "late": sum(versioned and self._instant(self.after, key) <= newest for key in done.backdated),
            "deleted": len(done.removed),
            "confirmed": len(done.removed) if self.by_key else 0,
            **dict.fromkeys(NEVER, 0),
            "fields": dict(fields) if versioned else {},
        }

    def _instant(self, listing: Listing, key: str) -> int:
        return 0 if self.version is None else int(str(listing[key][self.version]))


def differing(before: object, after: object, path: str = "") -> Iterator[str]:
    """Name the fields that differ, with dots where one stands in another; a list differs as a whole."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if canonical(before) != canonical(after):
            yield path
        return
    for name in before.keys() | after.keys():
        below = f"{path}.{name}" if path else name
        if name in before and name in after:
            yield from differing(before[name], after[name], below)
        else:
            yield below


def judge_sweep(name: str, by_script: Done, swept: Swept, told: Mapping[str, Report]) -> SweepVerdict:
    """Compare three accounts of one object: of who has changed it, of two looks at it, and of the sweep.

    ``told`` are the sweep's reports by where they stand, such as XCom.
    """
    expected, seen = swept.report(), swept.done()
    wrong = [] if by_script == seen else [f"{by_script} by the script, {seen} between two looks"]
    for place, report in told.items():
        wrong += [
            f"{kind} {report.get(kind)} in {place}, not {expected[kind]}"
            for kind in (*KINDS, "fields")
            if report.get(kind) != expected[kind]
        ]
    return SweepVerdict(name, expected, tuple(wrong))


def stored_reports(dsn: str, after: int) -> dict[str, Report]:
    """Read what ``extract.sweep`` holds of the sweeps that began after a row of the ledger, by object.

    Two sweeps of one object in that time are an error, and so is one that has not come to its end.
    """
    question = """
        select object, ended_at is not null and not given_up, stored, seen, absent, counts, fields
        from extract.sweep where number > %s
    """
    found: dict[str, Report] = {}
    with psycopg.connect(dsn) as connection:
        for name, whole, stored, seen, absent, counts, fields in connection.execute(question, [after]):
            if name in found or not whole:
                raise ValueError(f"{name} was swept twice, or not to the end")
            told = {kind: counts.get(kind, 0) for kind in (*COUNTS, *NEVER)}
            found[name] = {"stored": stored, "seen": seen, "absent": absent, **told, "fields": fields}
    return found
