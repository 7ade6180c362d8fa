"""What of an answer is said to people, and what is not: records, and what was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.api import client
from airflow_extract_provider.extract.api.words import is_page, words
from airflow_extract_provider.extract.errors import RecordsPathError, RequestRefusedError
from airflow_extract_provider.extract.page import Halted
from airflow_extract_provider.testing.hostile import Fault as Fault429
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import KEYED, TOKENS, Scene, rows
from tests.hazards.kinds import KINDS
from tests.loopback import Fault

PAGE = b'{"data": [{"id": 1, "email": "jane"}]}'
BOTH = b'{"data": [{"id": 1, "email": "jane"}], "errors": ["part of it is missing"]}'


@pytest.mark.parametrize("status", [200, 201, 203, 206, 207])
@pytest.mark.parametrize(
    "body",
    [
        PAGE,
        b"[1]",
        b"id,email\n1,jane",
        b"\xef\xbb\xbf" + PAGE[:-5],
        b"<contacts><name>jane</name></contacts>",
        b'"x" ' + PAGE,
    ],
)
def test_a_success_says_nothing(status: int, body: bytes) -> None:
    """Whatever it is, records may be in it."""
    assert words(status, body) == b""


@pytest.mark.parametrize("status", [200, 206, 400, 500])
def test_an_error_beside_records(status: int) -> None:
    """The error alone is said."""
    assert words(status, BOTH) == b'{"errors": ["part of it is missing"]}'
    assert not is_page(BOTH)


@pytest.mark.parametrize("page", [b"<!doctype html><p>Sign in", b" <HTML>", b"\xef\xbb\xbf<!DOCTYPE HTML>"])
def test_a_web_page_is_for_people(page: bytes) -> None:
    """With every status."""
    assert words(200, page) == words(503, page) == page


@pytest.mark.parametrize("private", [True, False])
def test_names_of_an_answer(private: bool, make_scene: Callable[..., Scene]) -> None:
    """They help to find the list; but where records are personal data, they may be names of persons."""
    scene = make_scene(TOKENS, private=private)
    scene.api.fault = lambda number, asked: Fault(body=b'{"jane_roe": {}, "john_doe": {}}')
    exc = scene.stops(RecordsPathError)
    assert ("jane_roe" in str(exc)) is not private


def test_what_was_asked_is_not_repeated(make_scene: Callable[..., Scene]) -> None:
    """An API that quotes the request: a page token in a header may open somebody's data."""
    token = "marked-token-of-a-page"
    pages = {"by": "token", "take": "next_cursor"}
    asked = {"path": "/tokens", "headers": {"X-Page": "{{ token or '' }}"}}
    scene = make_scene({"records": "data", "key": "id", "pages": pages, **asked})
    first = Fault(body=json.dumps({"data": [{"id": 1}], "next_cursor": token}).encode())
    refusal = Fault(409, json.dumps({"error": f"no page {token}", "sent": {"after": token}}).encode())
    scene.api.fault = lambda number, asked: first if number == 1 else refusal
    exc = scene.stops(RequestRefusedError)
    assert "no page ***" in str(exc)
    assert token not in str(exc)


def _pause(halted: threading.Event, seconds: float) -> None:
    if halted.wait(seconds):
        raise Halted


def test_a_page_out_of_a_cache_replaces_nothing_newer(make_scene: Callable[..., Scene]) -> None:
    """Equal versions, other bytes: which is newer is told by when the page was looked up, and that was before."""
    scene = make_scene(KEYED, version="at")
    scene.api.rows = [b'{"id": "a", "at": "2026-01-01T00:00:00Z", "n": "new"}']
    scene.run()
    stale = b'{"data": [{"id": "a", "at": "2026-01-01T00:00:00Z", "n": "old"}], "has_more": false}'
    scene.api.fault = lambda number, asked: Fault(body=stale, headers={"Age": "3600"})
    summary = scene.run(reset=True)
    assert summary.as_dict()["refetch"] == 1
    assert scene.stored()["a"]["n"] == "new"
    scene.api.fault = lambda number, asked: Fault(body=stale)
    assert scene.run(reset=True).as_dict()["updated"] == 1
    assert scene.stored()["a"]["n"] == "old"


def test_a_stop_ends_a_wait(make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that is over does not wait for the API's pause: it ends where it stands, and asks nothing more."""
    scene = make_scene(KEYED)
    monkeypatch.setattr(client, "pause", _pause)
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(429, b"", {"Retry-After": "50"}) if number > 1 else None
    summary = scene.run(run_for=timedelta(seconds=0.5))
    assert (summary.complete, summary.seconds < 20) == (False, True)
    asked = len(scene.api.asked)
    scene.assert_exact_after_repair()
    assert len(scene.api.asked) > asked


def test_a_stop_before_the_first_page_is_no_end(
    make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The changes begin where the copy is complete. A run that ends in the API's pause has read none of them: it says
    so, and the next one does."""
    with HostileApi(listings={"/things": KINDS["page updated"].served()}) as api:
        api.insert(25)
        api.clock.advance(5)
        scene = make_scene(KINDS["page updated"].described())
        scene.api = api
        scene.run()
        assert scene.run(walk="incremental").complete
        api.update(7)
        api.clock.advance(5)
        api.fault(api.count + 1, Fault429("429", retry_after=50))
        monkeypatch.setattr(client, "pause", _pause)
        cut = scene.run(walk="incremental", run_for=timedelta(seconds=0.5))
        assert (cut.complete, cut.pages) == (False, 0)
        assert cut.complete_to is not None
        done = scene.run(walk="incremental")
        assert (done.complete, done.as_dict()["updated"]) == (True, 1)
