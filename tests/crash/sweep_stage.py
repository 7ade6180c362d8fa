"""What the crash tests of sweeps play on: an API whose records change, return and are deleted, a copy that the oracle
watches, sweeps in this process, and sweeps in others that are always cleared away."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from airflow_extract_provider.extract.pipeline import Summary, WalkName
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import HostileApi, Version
from tests.crash.stage import wait_until
from tests.crash.sweep_child import Asked, Kind, Step, again_and_again, live, walked
from tests.exactly_once.oracle import RULES, expected, found, logged, transitions, watch
from tests.forked import processes
from tests.hazards.kinds import KINDS

__all__ = ["CHANGES", "COUNT", "LONG_AGO", "VARIANTS", "Life", "Moment", "SweepStage", "Wanted", "told"]

COUNT = 26
"""Records, in pages of 10."""
CHANGES = 8
"""Of a round."""
LONG_AGO = timedelta(days=1)
_KIND = KINDS["token updated"]
_BY_KEY = {"by_key": {"path": "/things/{{ key }}"}}
_NO_VERSIONS = {"version": None, "since": {**_KIND.spec["since"], "field": "updated_at"}}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "by sweep": {},
    "by key": _BY_KEY,
    "by sweep, no versions": _NO_VERSIONS,
    "by key, no versions": {**_BY_KEY, **_NO_VERSIONS},
}
"""What proves a delete, and whether records have versions: what is said of the object."""
_TOLD = (
    "stored",
    "seen",
    "absent",
    "new",
    "missed",
    "changed",
    "silent",
    "late",
    "deleted",
    "confirmed",
    "still_there",
)


@dataclass(frozen=True)
class Moment:
    """The ledger's last sequence, and how many true changes the oracle has seen."""

    sequence: int
    changes: int


@dataclass(frozen=True)
class Wanted:
    """What the sweep of a round finds, how many requests it sends, and how many steps of each kind it takes."""

    found: Mapping[str, Any]
    requests: int
    steps: Mapping[Kind, int]


class _Keys:
    """The ids of new records: 1, 2, 3 and so on; but that of a record which is to come ``back`` first."""

    def __init__(self) -> None:
        self.back: list[int] = []
        self._next = itertools.count(1)

    def __call__(self, _: int) -> int:
        return self.back.pop() if self.back else next(self._next)


class Life:
    """A process, and what it says at its end."""

    def __init__(self, work: Any, *args: Any) -> None:
        self._said, said = processes.Pipe(duplex=False)
        self.process = processes.Process(target=work, args=(*args, said))
        self.process.start()
        said.close()

    def ends(self) -> dict[str, Any] | None:
        """Wait for its end; what it says, None: it was killed."""
        self.process.join(60)
        assert self.process.exitcode in (0, -signal.SIGKILL)
        return self._said.recv() if self.process.exitcode == 0 else None

    def stands_still(self) -> bool:
        """Wait until it has stopped itself; False: it has come to its end instead."""
        stat = Path(f"/proc/{self.process.pid}/stat")

        def stopped() -> bool:
            with suppress(OSError):
                return stat.read_text().rpartition(")")[2].split()[0] == "T"
            return False

        wait_until(lambda: stopped() or not self.process.is_alive())
        return self.process.is_alive()

    def wake(self) -> None:
        """SIGCONT."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As `kill -9`. Harmless if it has ended."""
        self.process.kill()
        self.process.join()

    def clear_away(self) -> None:
        """End it, however it is."""
        self.kill()
        self._said.close()


class SweepStage:
    """An object `things` of a source `shop`, backfilled. ``spec`` is what is said of it beside what its kind says;
    None: not said. It is there as long as it is open, and so are its processes."""

    def __init__(self, dsn: str, **spec: Any) -> None:
        self._keys, self._open = _Keys(), ExitStack()
        listings = {"/things": _KIND.served()}
        self.api = api = self._open.enter_context(HostileApi(seed=3, keys=self._keys, listings=listings))
        self.conn = conn = psycopg.connect(dsn, autocommit=True)
        self.versioned = spec.get("version", "") is not None
        self.chance = random.Random(str(spec))
        things = {name: value for name, value in _KIND.described(events=RULES, **spec).items() if value is not None}
        source = {"source": "shop", "connection": "none", "objects": {"things": things}}
        self.asked = Asked(source, dsn, api.url, "")
        migrate(connecting(dsn), [parse_source(source, "test")])
        watch(conn, "shop.things")
        api.insert(COUNT)
        api.clock.advance(timedelta(minutes=1))
        self.run("the backfill", walk="backfill")
        self.baseline = logged(conn)

    def close(self) -> None:
        """End its processes, its API and its connection."""
        self._open.close()
        self.conn.close()

    def reconnect(self) -> None:
        """Look at the database again, after it was away."""
        self.conn.close()
        self.conn = psycopg.connect(self.asked.dsn, autocommit=True)

    def run(
        self, runner: str, walk: WalkName = "rebackfill", silent_after: float = 60.0, age: float = 0.0, **how: Any
    ) -> Summary:
        """Run a walk in this process, to its end."""
        return walked(replace(self.asked, runner=runner, walk=walk, silent_after=silent_after, age=age, how=how))

    def start(self, runner: str, step: Step | None = None, **asked: Any) -> Life:
        """Start a sweep in another process."""
        return self._started(live, replace(self.asked, runner=runner, **asked), step)

    def keep_on(self, runner: str, stop: Path, **asked: Any) -> Life:
        """Start a process that walks again and again."""
        return self._started(again_and_again, replace(self.asked, runner=runner, **asked), str(stop), os.getpid())

    def _started(self, *work: Any) -> Life:
        self._connected = self.api.connections
        life = Life(*work)
        self._open.callback(life.clear_away)
        return life

    def change(self) -> None:
        """Two records change, two without a new `updated_at`; two are deleted; two are new, one of which is older than
        what the incremental walk has called complete. In no other way is a round different from the one before."""
        one, two, *silent, three, four = self.chance.sample(self.ids, 6)
        self.api.update(one, two, value=self.chance.randrange(1000))
        self.api.update(*silent, touch=False)
        self.api.delete(three, four)
        self.api.insert(1, value=self.chance.randrange(1000))
        self.api.insert(1, at=self.api.clock.now - LONG_AGO, value=self.chance.randrange(1000))
        self.api.clock.advance(timedelta(seconds=5))

    @property
    def ids(self) -> list[int]:
        """The records that there are."""
        return [key for key in self.api.ids if isinstance(key, int)]

    def goes(self, key: int) -> Version:
        """Delete a record; what it was."""
        was = next(each for each in reversed(self.api.history()) if each.id == key)
        self.api.delete(key)
        return was

    def returns(self, was: Version) -> None:
        """A deleted record is there again, to the last byte."""
        assert isinstance(was.id, int)
        self._keys.back.append(was.id)
        with self.api.begin() as write:
            write.insert(1, at=was.created_at, **was.fields)
            write.update(was.id, at=was.updated_at, **was.fields)

    # What is there -------------------------------------------------------------------------------------------------

    def alive(self) -> dict[str, Any]:
        """The records of the copy that are not deleted."""
        return dict(self.conn.execute("select key, data from shop.things where deleted_at is null").fetchall())

    def number(self, asked: str, *values: Any) -> int:
        """The one number that a query gives."""
        row = self.conn.execute(asked.encode(), values).fetchone()
        assert row is not None
        return int(row[0])

    def sequence(self) -> int:
        """The ledger's last sequence."""
        return self.number("select coalesce(max(sequence), 0) from extract.ledger")

    def alone(self) -> bool:
        """Whether nobody else is connected to the database, nor to the API any more: then all that was asked of it is
        counted."""
        asked = """select count(*) from pg_stat_activity where datname = current_database()
                   and backend_type = 'client backend' and pid <> pg_backend_pid()"""
        return self.conn.execute(asked).fetchone() == (0,) and self.api.connections <= self._connected

    def moment(self) -> Moment:
        """What there is by now."""
        return Moment(self.sequence(), len([*transitions(self.conn)]))

    def sweeps(self, since: Moment) -> list[tuple[bool, bool, bool]]:
        """Of the sweeps that began since: whether each was judged, has ended, and was given up."""
        asked = """select judged_at is not null, ended_at is not null, given_up from extract.sweep
                   where number > %s order by number"""
        return [(row[0], row[1], row[2]) for row in self.conn.execute(asked, [since.sequence])]

    def reached(self, since: Moment) -> str:
        """How far the one sweep that began since has come."""
        found = self.sweeps(since)
        if not found:
            return "not begun"
        ((judged, ended, _),) = found
        return "ended" if ended else "judged" if judged else "reading"

    def pages(self, since: Moment) -> int:
        """How many pages the sweep that began since has committed."""
        asked = """select coalesce(max((position -> 'pages')::int), 0) from extract.ledger
                   where walk = 'rebackfill' and kind = 'page' and sequence > %s"""
        return self.number(asked, since.sequence)

    def changed(self, since: Moment) -> Counter[int]:
        """How often each record has truly changed since."""
        return Counter(int(each.key) for each in [*transitions(self.conn)][since.changes :])

    def store(self) -> tuple[Any, ...]:
        """Everything that a run which has lost its walk must leave alone."""
        asked = (
            "select key, xmin, ctid, data, revision from shop.things order by key",
            "select id from extract.outbox order by id",
            "select sequence, xmin, position from extract.ledger order by 1",
            "select number, xmin, judged_at, ended_at, counts from extract.sweep order by 1",
            "select sweep, xmin, digests from extract.sweep_seen order by 1, 3",
            "select key, number, reason from extract.refetch order by 1",
        )
        return tuple(self.conn.execute(each).fetchall() for each in asked)

    # What must be true ---------------------------------------------------------------------------------------------

    def undisturbed(self, by_key: bool) -> Wanted:
        """A round whose sweep lives to its end: what each other one must find."""
        self.change()
        said = self.start("undisturbed").ends()
        assert said is not None
        self.check_exact()
        seen = told(said["sweep"])
        wanted: dict[str, Any] = {"stored": COUNT + 2, "seen": COUNT, "absent": 2, "new": 2, "changed": 4, "deleted": 2}
        if by_key:
            wanted |= {"confirmed": 2}
        if self.versioned:
            wanted |= {"missed": 1, "silent": 2, "fields": {"value": 2}}
        assert {name: count for name, count in seen.items() if count} == wanted
        return Wanted(seen, said["requests"], said["steps"])

    def check_round(self, since: Moment, wanted: Wanted, report: Mapping[str, Any] | None) -> None:
        """One sweep has found what an undisturbed one finds, and the copy is exact."""
        assert told(report) == wanted.found
        assert self.sweeps(since) == [(True, True, False)]
        asked = "select count(*) from extract.ledger where kind = 'sweep' and sequence > %s"
        assert self.number(asked, since.sequence) == 1
        assert self.moment().changes - since.changes == CHANGES
        self.check_exact()

    def check_exact(self) -> None:
        """The copy holds what the API holds, each change is an event once, and the books are closed."""
        assert self.alive() == self.api.live()
        assert found(self.conn) == expected(self.conn, self.baseline)
        assert self.conn.execute("select * from extract.sweep_seen").fetchall() == []
        assert self.conn.execute("select key from extract.refetch").fetchall() == []

    def check_true(self) -> None:
        """The copy never held what the API had not held, in this order; nothing was deleted that was not gone."""
        states: defaultdict[str, list[Any]] = defaultdict(list)
        for version in self.api.history():
            states[str(version.id)].append(None if version.deleted else self.api.shown(version))
        copied: defaultdict[str, list[Any]] = defaultdict(list)
        for each in transitions(self.conn):
            copied[each.key].append(None if each.gone else each.now)
        assert {key: (each, states[key]) for key, each in copied.items() if not _within(each, states[key])} == {}


def _within(some: Sequence[Any], all_of_them: Sequence[Any]) -> bool:
    """Whether they are among the others, in the same order."""
    left = iter(all_of_them)
    return all(any(one == other for other in left) for one in some)


def told(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a sweep says that it has found, without when."""
    assert report is not None
    return {name: report[name] for name in (*_TOLD, "fields")}
