"""The tasks of the backfill DAG, in Airflow's own task runner: what the form asks for, and the windows of intervals."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import TaskInstanceState
from airflow.sdk.api.datamodels._generated import DagRunType

from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.errors import ExtractError, SourceError, WindowInvalidError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.failing import TaskFailed
from airflow_extract_provider.testing.hostile import HostileApi
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage
from tests.taskrun import Outcome

KIND = KINDS["token updated"]
SUCCESS, SKIPPED, FAILED = TaskInstanceState.SUCCESS, TaskInstanceState.SKIPPED, TaskInstanceState.FAILED
DAY = timedelta(days=1)
SCHEDULED, BACKFILL = DagRunType.SCHEDULED, DagRunType.BACKFILL


def source(**over: Any) -> Source:
    """A source whose things can be asked for a time, and read by key."""
    by_key = {"path": "/things/{{ key }}", "record": "@"}
    spec = KIND.described(**{"by_key": by_key, **over})
    return parse_source({"source": "shop", "connection": "shop_api", "objects": {"things": spec}}, "shop.yaml")


def task_of(source: Source) -> Any:
    """The task of the things in the source's backfill DAG."""
    return make_dags({"shop": source})["shop_backfill"].get_task("things")


class Shop(Stage):
    """An API with 20 things a day over five days, an empty store with tables, and an Airflow that knows both."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect) -> None:
        super().__init__(source(), api.url, "marked-secret-4711", dsn, connect)
        self.api, self.began = api, api.clock.now
        self.days: list[list[Any]] = []
        for _ in range(5):
            self.days.append(api.insert(20))
            api.clock.advance(DAY)
        api.clock.advance(DAY)

    def run(self, run_id: str = "manual__1", **conf: Any) -> Outcome:
        """Trigger the DAG with what a form holds."""
        return self._run(conf, run_id=run_id)

    def over(self, day: int, kind: DagRunType, *, cleared: int = 0, **conf: Any) -> Outcome:
        """A run over a day's interval; clearing it keeps its id."""
        begin = self.began + day * DAY
        run_id = f"{kind.value}__{day}"
        return self._run(conf, run_id=run_id, run_type=kind, interval=(begin, begin + DAY), cleared=cleared)

    def _run(self, conf: dict[str, Any], **of_run: Any) -> Outcome:
        return self.run_operator(task_of(self.source), conf, **of_run)

    def window(self, first: int, last: int) -> dict[str, str]:
        """The form's fields for some days."""
        at = [self.began + first * DAY, self.began + (last + 1) * DAY]
        return {"walk": "window", "window_from": at[0].isoformat(), "window_to": at[1].isoformat()}

    def live(self, *days: int) -> dict[str, Any]:
        """What the API shows of some days."""
        live = self.api.live()
        return {str(key): live[str(key)] for day in days for key in self.days[day]}

    def cursors(self) -> dict[str, str]:
        """The Variables."""
        return dict(self.airflow.variables)


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    logger = logging.getLogger("airflow_extract_provider")
    before = logger.level
    logger.setLevel(logging.INFO)
    with HostileApi(listings={"/things": KIND.served()}) as api:
        yield Shop(api, dsn, connect)
    logger.setLevel(before)


def refused(outcome: Outcome, kind: type[ExtractError]) -> str:
    """What a task that was refused says."""
    assert outcome.state is FAILED
    assert isinstance(outcome.error, TaskFailed)
    assert type(outcome.error.error) is kind
    assert outcome.tracebacks == []
    return str(outcome.error)


# The form -----------------------------------------------------------------------------------------------------------


def test_an_untouched_form_is_a_backfill(shop: Shop) -> None:
    """As it always was."""
    assert shop.run().state is SUCCESS
    assert shop.xcom()["walk"] == "backfill"
    assert shop.copy() == shop.api.live()


def test_each_walk(shop: Shop) -> None:
    """One after the other; a sweep begins though none is due, once in a run."""
    shop.run()
    shop.api.insert(2)
    shop.api.clock.advance(DAY)
    assert shop.run("changes", walk="incremental").state is SUCCESS
    assert (shop.xcom()["walk"], shop.xcom()["created"]) == ("incremental", 2)
    shop.api.delete(*shop.days[0][:3])
    assert shop.run("sweep", walk="rebackfill", max_deletes=3).state is SUCCESS
    assert shop.xcom()["sweep"]["deleted"] == 3
    count = shop.api.count
    shop.run("sweep", walk="rebackfill")
    assert shop.api.count == count
    assert shop.run("noted", walk="by_key").state is SUCCESS
    assert shop.copy() == shop.api.live()


def test_a_window(shop: Shop) -> None:
    """What changed between two instants, before anything else was read; no cursor is made."""
    assert shop.run(**shop.window(1, 2)).state is SUCCESS
    assert shop.copy() == shop.live(1, 2)
    assert shop.cursors() == {}
    assert shop.xcom()["window"] == "2026-03-02T10:00:00Z..2026-03-04T10:00:00Z"
    count = shop.api.count
    shop.run("again", **shop.window(1, 2))
    assert shop.api.count == count
    shop.run("once more", reset="shop", **shop.window(1, 2))
    assert shop.api.count > count


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"walk": "window"}, "both of its ends"),
        ({"walk": "window", "window_from": "2026-03-01T00:00:00Z"}, "both of its ends"),
        ({"window_from": "2026-03-01T00:00:00Z"}, "which it does not read"),
        ({"walk": "window", "window_from": "2026-03-02T00:00:00Z", "window_to": "2026-03-01T00:00:00Z"}, "before"),
        ({"walk": "window", "window_from": "2026-03-02T00:00:00Z", "window_to": "2026-02-30T00:00:00Z"}, "no instant"),
        ({"walk": "window", "window_from": "2026-03-02T00:00:00Z", "window_to": "2999-01-01T00:00:00Z"}, "yet to come"),
    ],
)
def test_forms_that_cannot_be_done(shop: Shop, conf: dict[str, Any], words: str) -> None:
    """Refused with what is wrong and what to do, before anything is asked; the same in a dry run."""
    for dry_run in (False, True):
        assert words in refused(shop.run(**conf, dry_run=dry_run), WindowInvalidError)
    assert shop.api.count == 0
    assert shop.copied() == 0


def test_a_field_that_the_form_does_not_have(shop: Shop) -> None:
    """Airflow takes it, and a misspelt dry run would be a backfill: refused before anything is asked, over an interval
    too. What Airflow's own operators put beside the values is none of ours, nor is the `conf` of a DAG of one's own."""
    for outcome in (shop.run(dryrun=True), shop.over(1, BACKFILL, object=["things"])):
        assert "Trigger it again with these names only: objects, walk, " in refused(outcome, SourceError)
    assert shop.api.count == 0
    assert shop.run(openlineage={"parentRunId": "1"}, dry_run=True).state is SUCCESS
    own = task_of(shop.source)
    own.fields = None
    assert shop.run_operator(own, {"mine": 1}).state is SUCCESS


def test_a_walk_that_is_none(shop: Shop) -> None:
    """A DAG of one's own may pass anything."""
    task = task_of(shop.source)
    task.chosen = "sideways"
    assert "backfill, incremental" in refused(shop.run_operator(task), SourceError)


@pytest.mark.parametrize("walk", ["window", "incremental", "by_key"])
def test_an_object_that_cannot_be_asked_so(shop: Shop, walk: str) -> None:
    """It is skipped, so that the others of the form are not held up."""
    task = task_of(source(since=None, by_key=None))
    task.chosen = walk
    if walk == "window":
        task.window_from, task.window_to = "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"
    assert shop.run_operator(task).state is SKIPPED
    assert shop.api.count == 0


def test_smaller_pages(shop: Shop) -> None:
    """They are asked for; larger ones than the file allows are not."""
    shop.run(page_size=4)
    assert shop.xcom()["pages"] == 25
    assert shop.copy() == shop.api.live()
    shop.run("again", reset="shop", page_size=1000)
    assert shop.xcom()["pages"] == 10


def test_start_over(shop: Shop) -> None:
    """Only with the source's name."""
    shop.run()
    count = shop.api.count
    shop.run("again")
    assert shop.api.count == count
    shop.run("once more", reset="shop")
    assert shop.api.count == count + 10


@pytest.mark.parametrize("walk", ["backfill", "incremental", "rebackfill", "window"])
def test_a_dry_run(shop: Shop, walk: str, caplog: pytest.LogCaptureFixture) -> None:
    """One request; nothing is stored, no cursor is made; the log tells what was asked and what it would take."""
    conf = shop.window(0, 1) if walk == "window" else {"walk": walk}
    assert shop.run(dry_run=True, **conf).state is SUCCESS
    assert shop.api.count == 1
    assert (shop.copied(), shop.cursors()) == (0, {})
    assert shop.ask("select 1 from extract.ledger") == []
    lines = shop.xcom()["dry_run"]
    assert "nothing was stored" in lines[0]
    assert any("/things" in line for line in lines)
    assert all(line in caplog.text for line in lines)
    assert "marked-secret" not in caplog.text


def test_a_dry_run_of_what_needs_none(shop: Shop) -> None:
    """What was noted stands in the store: skipped."""
    assert shop.run(dry_run=True, walk="by_key").state is SKIPPED


# Intervals ----------------------------------------------------------------------------------------------------------


def test_a_backfill_over_days(shop: Shop) -> None:
    """Each run reads its window; the cursors stay where they are; run again, it costs nothing."""
    shop.run()
    shop.run("changes", walk="incremental")
    before = shop.cursors()
    shop.ask("with gone as (delete from shop.things where key in (select key from shop.things limit 30)) select 1")
    for day in (0, 1, 2, 3, 4):
        assert shop.over(day, BACKFILL).state is SUCCESS
    assert shop.copied() == 70, "to the store it is complete: that somebody has deleted rows is not told by a window"
    for day in (0, 1, 2, 3, 4):
        assert shop.over(day, BACKFILL, reset="shop").state is SUCCESS
    assert shop.copy() == shop.api.live()
    assert shop.cursors() == before


def test_a_window_is_read_again_when_it_is_cleared(shop: Shop) -> None:
    """Cleared or reprocessed, the run has its id still: each time it is read once, whatever was covered before."""
    reads = []
    for cleared in (0, 0, 1, 1, 4, 4):
        count = shop.api.count
        assert shop.over(1, BACKFILL, cleared=cleared).state is SUCCESS
        reads.append(shop.api.count > count)
    assert reads == [True, False, True, False, True, False]


def test_a_scheduled_run_is_an_audit(shop: Shop) -> None:
    """It reads its window though it is covered, once: what has changed silently is found. Before the backfill has come
    to its end there is nothing to audit."""
    assert shop.over(2, SCHEDULED).state is SKIPPED
    assert shop.api.count == 0
    shop.run()
    shop.api.update(*shop.days[2][:4], touch=False, note="silent")
    assert shop.over(2, SCHEDULED).state is SUCCESS
    assert shop.xcom()["updated"] == 4
    count = shop.api.count
    shop.over(2, SCHEDULED)
    assert shop.api.count == count, "a retry goes on where the first try has come"
    shop.over(2, SCHEDULED, cleared=1)
    assert shop.api.count > count


def test_the_interval_of_a_manual_run_means_nothing(shop: Shop) -> None:
    """Airflow gives it one if it was asked for a logical date."""
    begin = shop.began
    task = task_of(shop.source)
    shop.run_operator(task, {}, interval=(begin, begin + DAY))
    assert shop.xcom()["walk"] == "backfill"


def test_an_interval_without_length(shop: Shop) -> None:
    """A schedule of one's own may give some: that is no window, and what the form says is done."""
    at: datetime = shop.began
    task = task_of(shop.source)
    shop.run_operator(task, {}, run_type=SCHEDULED, interval=(at, at))
    assert shop.xcom()["walk"] == "backfill"
