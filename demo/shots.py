"""``make shots``: the pictures in docs/shots, taken of a real Airflow by a headless Chromium.

What is seen is done as well: the window that is picked in the form is read, *Run Backfill* makes its runs. Ends with 2
if there is no Chromium, with 1 if something that a picture was to show did not come about.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.testing.postgres import PostgresStartError
from demo.airflow_api import AirflowApiError
from demo.processes import ChildFailedError
from demo.progress import Progress
from demo.services import PROJECT
from demo.shots_stage import BACKFILL, DAY, FAILING, SYNC, Stage, StageError, staged

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PICTURES = PROJECT / "docs" / "shots"
LARGEST = 250_000
WIDTH, HEIGHT, TALL = 1440, 900, 1600
PATIENCE = 120_000.0
"""How long the browser waits for anything, in milliseconds: this machine may be busy with other things."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = """\
make shots needs Chromium, and none was found.
  Install it, on Debian: apt-get install --no-install-recommends chromium
  Or name one: make shots CHROMIUM=/path/to/chromium"""
DIALOG = "[role=dialog][data-scope=dialog][data-state=open]"
THREE_DAYS = 3
PICKER = "datetime-input"
POPOVER = "[role=dialog][data-scope=popover][data-state=open]"


def main() -> int:
    """Take all pictures and return the exit code."""
    browser = find_browser()
    if browser is None:
        print(NO_BROWSER, file=sys.stderr)
        return 2
    from playwright.sync_api import Error

    progress = Progress()
    try:
        with staged() as stage, opened(stage, browser) as page:
            progress.say("Airflow is ready")
            take_all(stage, Camera(page, progress, secrets=(stage.airflow.password,)))
    except (AirflowApiError, ChildFailedError, Error, PostgresStartError, StageError) as error:
        progress.say(f"failed: {error}")
        return 1
    return 0


def find_browser() -> str | None:
    """Return the path of the Chromium that CHROMIUM names, or else of the first one on PATH."""
    names = (os.environ["CHROMIUM"],) if os.environ.get("CHROMIUM") else BROWSERS
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def opened(stage: Stage, browser: str) -> Iterator[Page]:
    """A browser, logged in by the login page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        try:
            context = chromium.new_context(
                viewport={"width": WIDTH, "height": HEIGHT}, timezone_id="UTC", reduced_motion="reduce"
            )
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.goto(stage.airflow.url)
            page.locator("input[name=username]").fill(stage.airflow.username)
            page.locator("input[name=password]").fill(stage.airflow.password)
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url: "/auth/" not in url)
            yield page
        finally:
            chromium.close()


@dataclass(frozen=True)
class Camera:
    """Takes pictures of a page, and sees to it that they tell nothing of this machine."""

    page: Page
    progress: Progress
    secrets: tuple[str, ...] = ()

    def take(self, name: str, part: Locator | None = None) -> None:
        """Take a picture, of all that is seen or of a part, once it has come to rest."""
        seen = (part or self.page.locator("body")).inner_text()
        if told := [each for each in (*self.secrets, str(PROJECT), socket.gethostname()) if each in seen]:
            raise StageError(f"the picture {name} would show {told}")
        # Where it stands, the pointer would open a hint.
        self.page.mouse.move(0, 0)
        self.page.wait_for_function("document.querySelector('.chakra-skeleton') === null")
        path = PICTURES / f"{name}.png"
        (part or self.page).screenshot(path=path, animations="disabled")
        if (size := path.stat().st_size) > LARGEST:
            raise StageError(f"the picture {name} has {size:,} bytes, more than {LARGEST:,}")
        self.progress.say(f"{path.relative_to(PROJECT)}   {size / 1000:.0f} kB")

    def goto(self, stage: Stage, place: str, height: int = HEIGHT) -> None:
        """Open a page of Airflow's, in a window of this height."""
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.goto(f"{stage.airflow.url}/{place}")


def take_all(stage: Stage, camera: Camera) -> None:
    """Take all pictures; what takes long is started first."""
    PICTURES.mkdir(exist_ok=True)
    stage.rest.unpause(FAILING)
    failing = stage.rest.trigger(FAILING)
    connection_form(stage, camera)
    failed_log(stage, camera, stage.ran(FAILING, failing, "failed"))
    trigger_form(stage, camera)
    backfill_dialog(stage, camera)
    grid(stage, camera)


def connection_form(stage: Stage, camera: Camera) -> None:
    """The form of a connection: what each API has, then what the kinds of login and a slow network want."""
    page = camera.page
    camera.goto(stage, "connections", TALL)
    page.get_by_role("button", name="Add Connection").click()
    form = page.locator(DIALOG)
    form.locator("input[name=connection_id]").fill("crm_api")
    form.get_by_role("combobox").click()
    page.get_by_role("option", name="REST API").click()
    form.locator("input[name=host]").fill("https://api.example.com")
    camera.take("connection-form", form)
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    form.locator("[name=element_test_path]").wait_for()
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    camera.take("connection-login")


def failed_log(stage: Stage, camera: Camera, run: str) -> None:
    """The log of a task that has stopped with a named error."""
    camera.goto(stage, f"dags/{FAILING}/runs/{run}/tasks/orders")
    camera.page.get_by_text("BadRecordError: ").wait_for()
    camera.take("failed-log")


def trigger_form(stage: Stage, camera: Camera) -> None:
    """The form of the backfill DAG, filled in for a window; sent, it must read exactly that."""
    begin, end = stage.today - 5 * DAY, stage.today - 3 * DAY + timedelta(hours=6, minutes=30)
    form = _open_form(stage, camera)
    _pick(_field(form, "(window_from)").get_by_test_id(PICKER), begin)
    _pick(_field(form, "(window_to)").get_by_test_id(PICKER), end)
    _field(form, "(walk)").get_by_role("combobox").click()
    camera.page.get_by_role("option", name="window").click()
    camera.take("trigger-form", form)
    form.get_by_role("button", name="Seldom needed").click()
    form.locator("[name=element_max_deletes]").wait_for()
    camera.take("trigger-form-seldom", form)
    answer = _sent(camera.page, form.get_by_role("button", name="Trigger", exact=True), "/dagRuns")
    conf, run = answer["conf"], stage.ran(BACKFILL, answer["dag_run_id"])
    camera.progress.say(f"the form has sent {conf['window_from']} to {conf['window_to']}")
    read, asked = stage.rest.xcom(BACKFILL, run, "contacts")["window"], f"{_text(begin)}..{_text(end)}"
    if read != asked:
        raise StageError(f"{asked} was picked, {read} was read")


def backfill_dialog(stage: Stage, camera: Camera) -> None:
    """Airflow's *Run Backfill* over three days; sent, it makes a run for each."""
    form = _open_form(stage, camera)
    form.get_by_text("Run this Dag for a range of dates").click()
    pickers = form.get_by_test_id(PICKER)
    _pick(pickers.nth(0), stage.today - 4 * DAY)
    _pick(pickers.nth(1), stage.today - 2 * DAY)
    form.get_by_text(f"{THREE_DAYS} runs will be triggered").wait_for()
    camera.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    camera.take("backfill-dialog")
    _sent(camera.page, form.get_by_role("button", name="Run Backfill", exact=True), "/backfills")
    runs = [run["dag_run_id"] for run in stage.rest.runs(BACKFILL) if run["run_type"] == "backfill"]
    if len(runs) != THREE_DAYS:
        raise StageError(f"Run Backfill over {THREE_DAYS} days has made {len(runs)} runs")
    for run in runs:
        stage.ran(BACKFILL, run)
    camera.progress.say(f"Run Backfill has made {len(runs)} runs")


def grid(stage: Stage, camera: Camera) -> None:
    """The grid of the sync DAG after three runs, between which others have written."""
    stage.rest.unpause(SYNC)
    stage.ran(SYNC, stage.first_run(SYNC))
    for _ in "12":
        stage.written()
        stage.ran(SYNC, stage.rest.trigger(SYNC))
    camera.goto(stage, f"dags/{SYNC}")
    camera.page.get_by_role("button", name="Expand all task groups").click()
    camera.page.get_by_text("incremental").first.wait_for()
    camera.take("sync-grid")


def _open_form(stage: Stage, camera: Camera) -> Locator:
    camera.goto(stage, f"dags/{BACKFILL}", TALL)
    camera.page.get_by_role("button", name="Trigger Dag").click()
    form = camera.page.locator(DIALOG)
    _field(form, "Objects").wait_for()
    return form


def _field(form: Locator, title: str) -> Locator:
    return form.locator("[data-scope=field][data-part=root]").filter(has_text=title)


def _pick(picker: Locator, instant: datetime) -> None:
    """Pick an instant as a person does who types into the date picker."""
    picker.click()
    popover = picker.page.locator(POPOVER)
    popover.get_by_placeholder("YYYY/MM/DD").fill(f"{instant:%Y/%m/%d}")
    popover.get_by_placeholder("HH:mm").fill(f"{instant:%H:%M}")
    picker.page.keyboard.press("Escape")
    popover.wait_for(state="hidden")


def _sent(page: Page, button: Locator, place: str) -> Any:
    """What Airflow answers to the form that a button sends."""
    with page.expect_response(lambda got: got.request.method == "POST" and got.url.endswith(place)) as waiting:
        button.click()
    if not waiting.value.ok:
        raise StageError(f"Airflow has refused the form: {waiting.value.status} {waiting.value.text()[:1000]}")
    return waiting.value.json()


def _text(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


if __name__ == "__main__":
    sys.exit(main())
