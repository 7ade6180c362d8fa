"""The cursor (law: one truth): whatever happens to it, the walk follows a person only to where it has been."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.cursor import AfterKey, AfterToken, Cursor, Position, cursor_key
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    CursorAheadError,
    CursorInvalidError,
    CursorShadowedError,
    CursorUnreadableError,
    ExtractError,
    FencedError,
)
from airflow_extract_provider.extract.pipeline import Runner
from airflow_extract_provider.extract.store.ledger import Ledger
from tests.extract.scene import KEYED, TOKENS, Scene, rows
from tests.extract.shown import Shown
from tests.loopback import Fault
from tests.store.applier import in_thread

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Walked:
    """A scene of six pages with a cursor; ``whole`` is what a walk asks from its beginning to its end."""

    scene: Scene
    shown: Shown
    whole: list[dict[str, str]]

    @property
    def key(self) -> str:
        return cursor_key(self.scene.name, self.scene.object, "backfill")

    @property
    def text(self) -> str:
        return self.shown.texts[self.key]

    @text.setter
    def text(self, text: str) -> None:
        self.shown.texts[self.key] = text

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Edit the cursor as a person would, in its text."""
        value = json.loads(self.text)
        change(value)
        self.text = json.dumps(value)

    def run(self, **arguments: Any) -> list[dict[str, str]]:
        """Run; returns what the API was asked by this run."""
        asked = len(self.scene.api.asked)
        self.scene.run(cursor=self.shown, **arguments)
        return self.asked(asked)

    def asked(self, since: int) -> list[dict[str, str]]:
        return [dict(each.params) for each in self.scene.api.asked[since:]]

    def until(self, page: int, **arguments: Any) -> None:
        """Run until this page is committed; then the API is gone."""
        asked = len(self.scene.api.asked)
        self.scene.api.fault = lambda number, each: Fault(500) if number > asked + page else None
        self.scene.stops(ApiUnavailableError, cursor=self.shown, **arguments)
        self.scene.api.fault = lambda number, each: None
        del self.scene.api.asked[asked:]

    def refuses(self, kind: type[ExtractError], **arguments: Any) -> None:
        """Run; it must stop before the first request, with the ledger as it was."""
        asked, ledger, stored = len(self.scene.api.asked), self.scene.ledger(), self.scene.stored()
        self.scene.stops(kind, cursor=self.shown, **arguments)
        assert self.asked(asked) == []
        assert self.scene.ledger() == ledger
        assert self.scene.stored() == stored

    def at(self, page: int) -> str:
        """The cursor's text after a page, as it was or would have been shown, of the newest walk from the beginning."""
        rows = [row for row in self.scene.ledger() if row.position.pages == page]
        return rows[-1].as_text()

    def place_at(self, page: int) -> Any:
        """The value that a person would edit: the last key, or the token, after a page."""
        place = Cursor.from_text(self.at(page)).position.place
        assert isinstance(place, AfterKey | AfterToken)
        return place.after if isinstance(place, AfterKey) else place.token

    @property
    def field(self) -> str:
        return "after" if self.scene.spec["path"] == "/keyed" else "next"

    def assert_done(self) -> None:
        """The walk is complete, the copy exact, the cursor shows the ledger's last row; replays changed nothing."""
        ledger = self.scene.ledger()
        assert ledger[-1].position.complete
        assert self.text == ledger[-1].as_text()
        assert self.scene.revisions() == {1}
        self.scene.assert_exact()


@pytest.fixture(params=["keyed", "tokens"])
def walked(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Walked:
    """A walk of six pages that has not begun, by last key and by token."""
    spec = KEYED if request.param == "keyed" else TOKENS
    scene = make_scene(spec)
    scene.api.rows = rows(55)
    if request.param == "keyed":
        # The next page is asked for after the last record but one: each page but the first holds nine new ones.
        places: list[dict[str, str]] = [{}] + [
            {"starting_after": scene.api.key_of(scene.api.rows[last - 1])} for last in range(9, 54, 9)
        ]
    else:
        places = [{}] + [{"cursor": f"t{first}"} for first in range(10, 55, 10)]
    return Walked(scene, Shown(), [{"limit": "10", **place} for place in places])


def test_left_alone(walked: Walked) -> None:
    """A cursor nobody touched: the walk goes on behind the last committed page, and asks for none before it again."""
    walked.until(3)
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


def test_complete_is_complete(walked: Walked) -> None:
    """A walk that has reached its end asks nothing any more."""
    assert walked.run() == walked.whole
    assert walked.run() == []
    walked.assert_done()


def test_without_a_cursor_store(walked: Walked) -> None:
    """The ledger alone is enough."""
    walked.until(2)
    asked = len(walked.scene.api.asked)
    walked.scene.run(cursor=None)
    assert walked.asked(asked) == walked.whole[2:]
    walked.scene.assert_exact()


@pytest.mark.parametrize("page", [0, 1, 2, 3])
def test_edited_back(page: int, walked: Walked) -> None:
    """Only the key or token edited to an earlier page's: the walk goes back there, and reads nothing before it."""
    walked.until(4)
    walked.edit(lambda value: value["place"].update({walked.field: walked.place_at(page)}))
    assert walked.run() == walked.whole[page:]
    walked.assert_done()


@pytest.mark.parametrize("page", [0, 1, 3])
def test_put_back_to_an_older_value(page: int, walked: Walked) -> None:
    """A whole earlier value, put back word by word, is followed."""
    walked.until(4)
    walked.text = walked.at(page)
    assert walked.run() == walked.whole[page:]
    walked.assert_done()


def test_put_back_from_the_ledger(walked: Walked) -> None:
    """The query of docs/operations.md gives older values as the Variable had them."""
    (query,) = re.findall(r"```sql\n(select committed_at.*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    scene = walked.scene
    for written, here in (("extract.", f"{scene.books}."), ("'crm'", f"'{scene.name}'"), ("contacts", scene.object)):
        query = query.replace(written, here)
    walked.until(4)
    with scene.connect() as conn:
        found = [value for _, value in conn.execute(query.encode())]
    walked.text = json.dumps(next(value for value in found if value["pages"] == 2))
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


def test_put_back_when_complete(walked: Walked) -> None:
    """An earlier value put back after the end makes the walk read from there again; nothing is stored twice."""
    walked.run()
    walked.text = walked.at(2)
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


def test_an_edit_is_followed_once(walked: Walked) -> None:
    """A followed edit is a ledger row: a run that dies after it goes on from there, and does not follow it again."""
    walked.until(4)
    walked.text = walked.at(1)
    walked.until(2)
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


@pytest.mark.parametrize("died", [False, True], ids=["before the write", "after the write"])
def test_killed_after_following_an_edit(died: bool, walked: Walked) -> None:
    """Killed between the ledger row of a followed edit and the cursor's write, or right after: it is followed all the
    same."""
    walked.until(4)
    walked.text = walked.at(1)
    walked.shown.failing_writes, walked.shown.after_write = {len(walked.shown.written) + 1: Killed()}, died
    with pytest.raises(Killed):
        walked.run()
    walked.shown.failing_writes = {}
    assert walked.run() == walked.whole[1:]
    walked.assert_done()


def test_edited_ahead(walked: Walked) -> None:
    """A place that the walk has not reached is refused, in whatever words; put right, the walk goes on."""
    walked.until(2)
    right = walked.text
    ahead = walked.scene.api.key_of(walked.scene.api.rows[45]) if walked.field == "after" else "t40"
    for change in (
        {"place": {**json.loads(right)["place"], walked.field: ahead}},
        {"place": {**json.loads(right)["place"], walked.field: ahead}, "sequence": 10**15},
        {"complete": True},
        {"place": {**json.loads(right)["place"], walked.field: "nothing of this name"}, "pages": 5, "records": 50},
    ):
        walked.text = json.dumps({**json.loads(right), **change})
        walked.refuses(CursorAheadError)
    walked.text = right
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


@pytest.mark.parametrize("sequence", [0, -1, 10**12, 10**40])
def test_only_the_sequence_edited(sequence: int, walked: Walked) -> None:
    """The place counts: with another number beside it the walk goes on from that place."""
    walked.until(3)
    walked.edit(lambda value: value.update(sequence=sequence))
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


def test_only_the_counts_edited(walked: Walked) -> None:
    """Counts are for people: edited, they change nothing about where the walk goes on, nor are they taken over."""
    walked.until(3)
    walked.edit(lambda value: value.update(pages=99, records=0))
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


def _without(name: str) -> Callable[[str], str]:
    return lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != name})


def _with(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


def _placed(**changes: Any) -> Callable[[str], str]:
    def changed(text: str) -> str:
        value = json.loads(text)
        field = "after" if "after" in value["place"] else "next"
        value["place"].update({field if name == "here" else name: each for name, each in changes.items()})
        return json.dumps(value)

    return changed


GARBAGE: Mapping[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "a word": lambda text: "yesterday",
    "null": lambda text: "null",
    "a number": lambda text: "7",
    "a list": lambda text: "[]",
    "an empty object": lambda text: "{}",
    "cut short": lambda text: text[:-10],
    "something behind": lambda text: text + "}",
    "no sequence": _without("sequence"),
    "sequence a text": _with(sequence="5"),
    "sequence true": _with(sequence=True),
    "sequence a fraction": _with(sequence=5.0),
    "no place": _without("place"),
    "a misspelt field": lambda text: text.replace('"pages"', '"page"'),
    "a misspelt field of the place": lambda text: text.replace('"by"', '"bye"'),
    "another field": _with(note="mine"),
    "negative pages": _with(pages=-1),
    "complete a text": _with(complete="yes"),
    "an instant without zone": _with(began_at="2026-01-01T00:00:00"),
    "another way of paging": lambda text: text.replace('"last_key"', '"page"').replace('"token",', '"page",', 1),
    "a place that is a number": _placed(here=7),
    "NUL in the place": _placed(here="a\x00b"),
    "half a surrogate pair in the place": _placed(here="\ud800"),
    "nested beyond all measure": lambda text: "[" * 100_000,
    "a name twice": lambda text: text.replace('"pages"', '"pages": 1, "pages"'),
    "a number of 5,000 digits": lambda text: '{"sequence": ' + "1" * 5000 + "}",
}


@pytest.mark.parametrize("walked", ["keyed"], indirect=True)
@pytest.mark.parametrize("name", GARBAGE)
def test_edited_to_garbage(name: str, walked: Walked) -> None:
    """What is no cursor is refused before anything is read; put right, the walk goes on where it stood."""
    walked.until(2)
    right = walked.text
    walked.text = GARBAGE[name](right)
    assert walked.text != right
    walked.refuses(CursorInvalidError)
    walked.text = right
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


def test_deleted(walked: Walked) -> None:
    """A cursor that was there and is proven gone: the walk starts over, reads all, and stores nothing twice."""
    walked.until(3)
    walked.shown.texts.clear()
    assert walked.run() == walked.whole
    walked.assert_done()


def test_deleted_when_complete(walked: Walked) -> None:
    """Deleting the cursor is how a person has everything read again."""
    walked.run()
    walked.scene.api.rows[7] = walked.scene.api.rows[7].replace(b'"n": ', b'"n": 9')
    walked.shown.texts.clear()
    assert walked.run() == walked.whole
    walked.scene.assert_exact()


def test_deleted_and_the_start_over_dies(walked: Walked) -> None:
    """A start over that is interrupted goes on; it does not start over again."""
    walked.until(4)
    walked.shown.texts.clear()
    walked.until(2)
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


def test_never_confirmed(walked: Walked) -> None:
    """A cursor that is not there and was never known to be is no deletion: the walk goes on from the ledger."""
    asked = len(walked.scene.api.asked)
    walked.scene.api.fault = lambda number, each: Fault(500) if number > asked + 3 else None
    walked.scene.stops(ApiUnavailableError, cursor=None)
    walked.scene.api.fault = lambda number, each: None
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


def test_killed_before_its_first_write(walked: Walked) -> None:
    """Killed with nothing shown yet: the next run begins at the beginning, where the ledger stands."""
    walked.shown.failing_writes = {1: Killed()}
    with pytest.raises(Killed):
        walked.run()
    assert walked.shown.texts == {}
    assert len(walked.scene.ledger()) == 1
    walked.shown.failing_writes = {}
    assert walked.run() == walked.whole
    assert len([row for row in walked.scene.ledger() if row.position.pages == 0]) == 1
    walked.assert_done()


def test_killed_between_the_first_write_and_its_note(walked: Walked) -> None:
    """Killed when the cursor was written but not noted: deleted then, it was never confirmed; left, it is followed."""
    walked.shown.failing_writes, walked.shown.after_write = {1: Killed()}, True
    with pytest.raises(Killed):
        walked.run()
    walked.shown.failing_writes = {}
    walked.until(2)
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


@pytest.mark.parametrize("after_write", [False, True], ids=["before the write", "after the write"])
def test_killed_between_commit_and_write(after_write: bool, walked: Walked) -> None:
    """Killed with pages in the ledger that the cursor does not show yet, or just shows: not one is read again."""
    settings = walked.scene.settings(cursor_every=timedelta(0), batch=1)
    walked.shown.failing_writes, walked.shown.after_write = {4: Killed()}, after_write
    with pytest.raises(Killed):
        walked.run(settings=settings)
    walked.shown.failing_writes = {}
    committed = walked.scene.ledger()[-1].position.pages
    assert committed >= 3
    assert walked.run() == walked.whole[committed:]
    walked.assert_done()


@pytest.mark.parametrize("reset", [False, True])
def test_unreadable(reset: bool, walked: Walked) -> None:
    """A cursor that cannot be read is not "no cursor": nothing is read and nothing is started over."""
    walked.until(3)
    walked.shown.failing_reads = CursorUnreadableError("the API server answers 500.", todo="Run again later.")
    if reset:
        # Asked to start over, the walk need not know where the cursor stood.
        assert walked.run(reset=True) == walked.whole
    else:
        walked.refuses(CursorUnreadableError)
        walked.shown.failing_reads = None
        assert walked.run() == walked.whole[3:]
    walked.assert_done()


def test_unreadable_at_the_very_first_run(walked: Walked) -> None:
    """Even when nothing is in the ledger, a cursor that cannot be read stops the run."""
    walked.shown.failing_reads = CursorUnreadableError("the API server answers 500.", todo="Run again later.")
    walked.refuses(CursorUnreadableError)
    walked.shown.failing_reads = None
    assert walked.run() == walked.whole
    walked.assert_done()


def test_shadowed(walked: Walked) -> None:
    """A cursor hidden by another definition would never move: the run stops, and goes on once that is gone."""
    walked.until(3)
    walked.shown.failing_reads = CursorShadowedError("hidden by an environment variable.", todo="Remove it.")
    walked.refuses(CursorShadowedError)
    walked.shown.failing_reads = None
    assert walked.run() == walked.whole[3:]
    walked.assert_done()


def test_shadowed_at_the_first_write(walked: Walked) -> None:
    """That the cursor is hidden may show only when it is read back: still nothing is asked of the API."""
    walked.shown.failing_writes = {1: CursorShadowedError("hidden by an environment variable.", todo="Remove it.")}
    walked.scene.stops(CursorShadowedError, cursor=walked.shown)
    assert walked.scene.api.asked == []
    assert walked.run() == walked.whole
    walked.assert_done()


def test_a_write_in_between_that_fails(walked: Walked) -> None:
    """A cursor that cannot be written for a while is no reason to stop: the ledger has the position."""
    settings = walked.scene.settings(cursor_every=timedelta(0), batch=1)
    failure = CursorUnreadableError("the API server answers 500.", todo="Run again later.")
    walked.shown.failing_writes = {2: failure, 3: failure}
    assert walked.run(settings=settings) == walked.whole
    walked.assert_done()


def test_the_last_write_fails(walked: Walked) -> None:
    """When not even the end can be shown the run ends as one to be tried again; the next one only shows it."""
    failure = CursorUnreadableError("the API server answers 500.", todo="Run again later.")
    walked.shown.failing_writes = dict.fromkeys(range(2, 20), failure)
    walked.scene.stops(CursorUnreadableError, cursor=walked.shown)
    walked.shown.failing_writes = {}
    assert walked.run() == []
    walked.assert_done()


def test_reset_and_its_retry(walked: Walked) -> None:
    """A reset starts over once for a task instance: its retries go on, another task's reset starts over again."""
    one, other = Runner("one"), Runner("other")
    walked.run()
    walked.until(2, reset=True, runner=one)
    assert walked.run(reset=True, runner=one) == walked.whole[2:]
    walked.assert_done()
    assert walked.run(reset=True, runner=other) == walked.whole
    walked.assert_done()


def test_killed_between_a_reset_and_its_write(walked: Walked) -> None:
    """A reset is a ledger row: killed before the cursor shows it, the old cursor is not taken for an edit."""
    walked.until(4)
    walked.shown.failing_writes = {len(walked.shown.written) + 1: Killed()}
    with pytest.raises(Killed):
        walked.run(reset=True, runner=Runner("one"))
    walked.shown.failing_writes = {}
    assert walked.run(runner=Runner("other")) == walked.whole
    walked.assert_done()


def test_a_value_from_before_a_reset(walked: Walked) -> None:
    """A value from before the walk started over is ahead of it until the walk has come there again."""
    walked.until(4)
    old = walked.text
    walked.until(2, reset=True)
    right, walked.text = walked.text, old
    walked.refuses(CursorAheadError)
    walked.text = right
    assert walked.run() == walked.whole[2:]
    walked.text = old
    assert walked.run() == walked.whole[4:]
    walked.assert_done()


def test_a_late_write_of_a_run_that_had_lost_the_walk(walked: Walked) -> None:
    """It lies over what the next run has shown, which had started over: nobody ever saw it, so nobody has edited it."""
    walked.until(4)
    late = walked.at(2)
    walked.until(2, reset=True)
    walked.text = late
    assert walked.run() == walked.whole[2:]
    walked.assert_done()


def test_a_cursor_of_another_store(walked: Walked) -> None:
    """A cursor beside an empty ledger (another database): nothing was read here, following it would skip all before."""
    walked.text = Cursor(12, Position(AfterKey("r7") if walked.field == "after" else AfterToken("t10"))).as_text()
    walked.refuses(CursorAheadError)
    walked.shown.texts.clear()
    assert walked.run() == walked.whole
    walked.assert_done()


def test_the_cursor_as_people_read_it(walked: Walked) -> None:
    """The cursor is spread over lines and reads back to the same value."""
    walked.until(2)
    assert walked.text.count("\n") > 5
    assert Cursor.from_text(walked.text).as_text() == walked.text
    assert Cursor.from_text(walked.text) == walked.scene.ledger()[-1]


def test_the_cursors_name_is_no_secret() -> None:
    """Airflow masks values of names with words such as token, key or secret: the cursor's own words are none."""
    name = cursor_key("crm", "contacts", "backfill")
    assert name == "extract_crm_contacts_backfill_cursor"
    assert not [word for word in ("token", "key", "secret", "password", "passphrase", "auth") if word in name]


@pytest.mark.parametrize("where", ["append", "show"])
def test_stopped_in_the_books(where: str, walked: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped while it writes the books is cut off too: it does not keep the next one out for ever."""
    stopped, wake, right = threading.Event(), threading.Event(), getattr(Ledger, where)

    def stops(ledger: Ledger, *arguments: Any) -> Any:
        found = right(ledger, *arguments)
        if not stopped.is_set():
            stopped.set()
            wake.wait(20)
        return found

    monkeypatch.setattr(Ledger, where, stops)
    settings = walked.scene.settings(idle_timeout=timedelta(seconds=1))
    first = in_thread(lambda: walked.run(settings=settings))
    assert stopped.wait(10)
    second = in_thread(lambda: walked.run(take_over=True))
    try:
        second.result(timeout=10)
    finally:
        wake.set()
    with pytest.raises(FencedError):
        first.result(timeout=10)
    walked.assert_done()


@pytest.mark.parametrize("place", [AfterKey("b", ("a",)), AfterToken("t")], ids=lambda place: type(place).__name__)
def test_a_cursor_is_plain_json_without_masked_names(place: AfterKey | AfterToken) -> None:
    """It survives XCom and Airflow's REST API: lists, no tuples, and no name at which Airflow shows only stars."""
    value = Position(place).as_json()
    assert json.loads(json.dumps(value)) == value
    assert Position.from_json(value) == Position(place)
    assert [name for name in (*value, *value["place"]) if "token" in name or "secret" in name] == []
