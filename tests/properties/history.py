"""A world in which any history can be played: one API of some kind, a store, and runs that end at any step."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.cursor import cursor_key
from airflow_extract_provider.extract.errors import CursorAheadError, ExtractError
from airflow_extract_provider.extract.pipeline import Runner, Settings, WalkName, run
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import HostileApi, Transaction
from tests.properties.habits import Habits
from tests.properties.steps import Change, Killed, Run, Watch, pass_by, watching

__all__ = ["World", "prepare"]

BOOKS = "history_books"
LATENESS = timedelta(seconds=25)
INCREMENTAL: Final[tuple[Literal["backfill", "incremental"], ...]] = ("backfill", "incremental")


class _Shown:
    """Cursors in memory, with every text that was ever shown."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.written: defaultdict[str, list[str]] = defaultdict(list)

    def read(self, key: str) -> str | None:
        return self.texts.get(key)

    def write(self, key: str, text: str) -> None:
        pass_by("writing")
        self.texts[key] = text
        self.written[key].append(text)
        pass_by("written")


def prepare(connect: Connect) -> None:
    """Make the books and the one record table that all histories write to, each in another source's name."""
    migrate(connect, [_source("history", Habits("page id"))], BOOKS)


def _source(name: str, habits: Habits) -> Any:
    objects = {"things": habits.described()}
    return parse_source({"source": name, "connection": "none", "objects": objects}, "test")


class World:
    """The API and the copy of it. Close it."""

    def __init__(self, connect: Connect, name: str, habits: Habits) -> None:
        self.connect, self.name, self.habits = connect, name, habits
        self.api = HostileApi(listings={"/things": habits.served()})
        self.api.__enter__()
        self.api.every(1, self._before_answer)
        self.source = _source(name, habits)
        self.object = self.source.object("things")
        self.session = requests.Session()
        self.session.trust_env = False
        self.shown = _Shown()
        self.runner = Runner()
        self.ever_stale = self.untouched = False
        self._open: list[tuple[datetime, Transaction]] = []
        self._asked, self._plan = 0, Run()
        self._looking: Connection = connect()
        self._looking.autocommit = True
        # With its owner: the next history is another source's.
        self._looking.execute(f"truncate history.things, {BOOKS}.owner".encode())

    def close(self) -> None:
        """Stop serving."""
        self.session.close()
        self._looking.close()
        self.api.__exit__(None, None, None)

    # -- the API ------------------------------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """Let something happen at the API. Records are named by their place among those there are."""
        what, at, many = change
        api = self.api
        picked = [api.ids[(at + step) % len(api.ids)] for step in range(min(many, len(api.ids)))] if api.ids else []
        match what:
            case "insert":
                api.insert(many)
            case "import":
                api.bulk_import(many)
            case "update" | "update untouched" | "delete":
                for key in picked:
                    self._write(what, key)
            case "late insert" | "late update" if self.habits.is_late:
                self._begin(what, many, picked)
            case "commit":
                self._commit(len(self._open) and at % len(self._open))
            case "pass":
                self.advance(timedelta(milliseconds=many * 10**at))
            case "expire":
                api.expire_tokens()

    def _write(self, what: str, key: Any) -> None:
        try:
            if what == "delete":
                self.api.delete(key)
            else:
                self.api.update(key, touch=what == "update")
                self.untouched |= what == "update untouched"
        except ValueError:  # an open transaction holds it
            return

    def _begin(self, what: str, many: int, picked: Sequence[Any]) -> None:
        write = self.api.begin()
        self._open.append((self.api.clock.now, write))
        if what == "late insert":
            write.insert(many)
            return
        for key in picked:
            try:
                write.update(key)
            except ValueError:  # another one holds it
                continue

    def _commit(self, at: int) -> None:
        if self._open:
            self._open.pop(at)[1].commit()

    def advance(self, by: timedelta) -> None:
        """Let time pass; nothing is shown later than the source file says."""
        while self._open and self.api.clock.now + by - self._open[0][0] > LATENESS:
            self._commit(0)
        self.api.clock.advance(by)

    def _before_answer(self) -> None:
        self._asked += 1
        assert self._asked < 2000, "the walk does not end"
        for change in self._plan.changes.get(self._asked, ()):
            self.change(change)
        fault = self._plan.faults.get(self._asked)
        if fault == "repeat_page" and self._asked == 1:
            fault = None  # the end of an earlier list looks like the end of this one
        self.ever_stale |= fault == "repeat_page"
        self.api.faults(float(fault is not None), [fault or "503"], in_a_row=1)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def run(self, plan: Run) -> BaseException | None:
        """Run as planned; returns what stopped it."""
        stop, opened = threading.Event(), list[Connection]()
        watch = Watch(plan, lambda: self._end(plan, watch, stop, opened))
        outer = self._plan, self._asked
        self._plan, self._asked = plan, 0
        found: BaseException | None = None
        try:
            with watching(watch):
                self._started(plan, stop, opened)
        except (ExtractError, Killed) as exc:
            found = exc
        finally:
            self._plan, self._asked = outer
        if not (isinstance(found, Killed) and plan.retry):
            self.runner = Runner()
        if isinstance(found, CursorAheadError):
            self.put_back(plan.walk, -1)
        return found

    def _started(self, plan: Run, stop: threading.Event, opened: list[Connection]) -> None:
        def opening() -> Connection:
            opened.append(self.connect())
            return opened[-1]

        run(
            self.source,
            "things",
            plan.walk,
            postgres=opening,
            client=ApiClient(self.source, self.session, self.api.url, bounds=Bounds(5.0, 5.0), tries=2),
            runner=self.runner,
            cursor=self.shown,
            reset=plan.reset,
            take_over=True,
            run_for=timedelta(0) if plan.end == "slice" else None,
            stop=stop,
            settings=Settings(schema=BOOKS, cursor_every=timedelta(0), batch=10),
        )

    def _end(self, plan: Run, watch: Watch, stop: threading.Event, opened: list[Connection]) -> None:
        if plan.end == "kill":
            for conn in opened:
                conn.close()
            raise Killed
        if plan.end == "stop":
            watch.halted = True
            stop.set()
        if plan.end == "taken over" and plan.step != "within":
            mine, self.runner = self.runner, Runner()
            self.run(Run(plan.walk, end="stop", number=2))
            self.runner = mine

    def put_back(self, walk: WalkName, at: int) -> None:
        """Edit the cursor back to a text that it had."""
        key = cursor_key(self.name, "things", walk)
        if texts := self.shown.written[key]:
            self.shown.texts[key] = texts[at % len(texts)]

    def delete_cursor(self, walk: WalkName) -> None:
        """Delete the cursor, as a person would to start over."""
        self.shown.texts.pop(cursor_key(self.name, "things", walk), None)

    # -- both ends ----------------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, tuple[Any, int, bool]]:
        """Each key with its record, its revision, and whether it is a tombstone."""
        rows = self._looking.execute("select key, data::text, revision, deleted_at is not null from history.things")
        return {key: (data and json.loads(data), revision, deleted) for key, data, revision, deleted in rows}

    def noted(self) -> bool:
        """Whether any key is to be read again."""
        text = f"select exists (select from {BOOKS}.refetch where source = %s)"
        return self._looking.execute(text.encode(), [self.name]).fetchone() == (True,)

    def closed(self, walk: WalkName) -> datetime | None:
        """Up to when a walk says that the copy is complete."""
        head = Ledger(BOOKS, self.name, "things", walk).head(self._looking)
        return None if head is None or not (head.position.complete or walk == "incremental") else head.position.closed

    def most_tied(self) -> int:
        """The most records that share one instant, as the API shows it."""
        shown: defaultdict[Any, int] = defaultdict(int)
        for record in self.api.live().values():
            shown[record["updated_at"]] += 1
        return max(shown.values(), default=0)

    def check(self) -> None:
        """What is stored, the API had; what a walk calls complete is stored."""
        stored = self.stored()
        versions: defaultdict[str, list[Any]] = defaultdict(list)
        for version in self.api.history():
            versions[str(version.id)].append(None if version.deleted else self.api.shown(version))
        for key, (data, revision, deleted) in stored.items():
            assert deleted or data in versions[key], f"{key}: the API never had {data}"
            assert self.ever_stale or revision <= len(versions[key]), f"{key}: {revision} of {versions[key]}"
        for walk in INCREMENTAL:
            self._check_closed(walk, stored)

    def _check_closed(self, walk: WalkName, stored: Mapping[str, tuple[Any, int, bool]]) -> None:
        closed = self.closed(walk)
        # Only `late` is part of what is called complete; changes later than that are the lookback's.
        if closed is None or self.untouched or (self.habits.is_late and self.habits.late == "0s"):
            return
        newest = {version.id: version for version in self.api.history()}
        for key, version in newest.items():
            if not version.deleted and version.updated_at is not None and version.updated_at < closed:
                data, _, deleted = stored.get(str(key), (None, 0, True))
                shown = None if deleted else data
                assert shown == self.api.shown(version), f"{walk}, complete to {closed}: {key} is {data}"

    def settle(self) -> None:
        """Nothing is open any more, and time has passed."""
        while self._open:
            self._commit(0)
        self.advance(timedelta(minutes=5))

    def assert_exact(self) -> None:
        """The copy is the API; what the API has deleted may still be in it, where no tombstone and no sweep tells."""
        live = self.api.live()
        found = {key: data for key, (data, _, deleted) in self.stored().items() if key in live and not deleted}
        differing = {key: (record, found.get(key)) for key, record in live.items() if found.get(key) != record}
        assert not differing, f"at the API, and here: {differing}"
