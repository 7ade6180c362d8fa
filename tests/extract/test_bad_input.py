"""Bad input is handled exactly, or stops the run with a named error; nothing is half-written, the repair is exact."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from airflow_extract_provider.extract.errors import (
    AnchorLostError,
    ApiUnavailableError,
    BadRecordError,
    ConnectionMissingError,
    DoubledKeyError,
    ExtractError,
    FixConfig,
    LoginError,
    PositionMismatchError,
    QuotaSpentError,
    RecordsPathError,
    RepeatedPageError,
    RequestRefusedError,
    SchemaMissingError,
    SourceError,
    StoreRightsError,
    StoreUnavailableError,
    TokenExpiredError,
    UnorderedStreamError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.pipeline import Runner, run
from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import free_port
from tests.extract.scene import KEYED, TOKENS, Scene, exact, rows
from tests.loopback import Asked, Fault

MakeScene = Callable[..., Scene]


def _more(pages: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The `pages` of an object with changes; None leaves a key out."""
    return {name: value for name, value in {**pages, **changes}.items() if value is not None}


# --- Answers that are none ---------------------------------------------------------------------------------------

DEEP = b'{"data": [{"id": "deep", "a": ' + b"[" * 30_000 + b"]" * 30_000 + b'}], "has_more": false}'
ANSWERS: Mapping[str, tuple[Fault, type[ExtractError]]] = {
    "401": (Fault(401, b'{"error": "who"}'), LoginError),
    "403": (Fault(403, b'{"error": "no"}'), LoginError),
    "405": (Fault(405, b""), RequestRefusedError),
    "409": (Fault(409, b"{}"), RequestRefusedError),
    "204": (Fault(204, b""), RequestRefusedError),
    "206, a part": (Fault(206), RequestRefusedError),
    "304": (Fault(304, b""), RequestRefusedError),
    "501": (Fault(501, b""), RequestRefusedError),
    "redirect": (Fault(302, b"", {"Location": "https://elsewhere.example/login"}), RequestRefusedError),
    "redirect for good": (Fault(308, b"", {"Location": "/keyed/"}), RequestRefusedError),
    "redirect to nowhere": (Fault(301, b""), RequestRefusedError),
    "redirect to no address": (Fault(302, b"", {"Location": "http://[broken"}), RequestRefusedError),
    "408": (Fault(408, b""), ApiUnavailableError),
    "429": (Fault(429, b"", {"Retry-After": "1"}), ApiUnavailableError),
    "500": (Fault(500, b"<html>oops</html>"), ApiUnavailableError),
    "502": (Fault(502, b""), ApiUnavailableError),
    "503": (Fault(503, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), ApiUnavailableError),
    "503, an odd Retry-After": (Fault(503, b"", {"Retry-After": "\xb2"}), ApiUnavailableError),
    "504": (Fault(504, b""), ApiUnavailableError),
    "connection breaks": (Fault(cut=20), ApiUnavailableError),
    "bad gzip": (Fault(headers={"Content-Encoding": "gzip"}), ApiUnavailableError),
    "html": (Fault(body=b"<!doctype html><title>Sign in</title>"), WrongAnswerError),
    "html after space": (Fault(body=b"\xef\xbb\xbf\r\n  <html></html>"), WrongAnswerError),
    "empty": (Fault(body=b""), WrongAnswerError),
    "blank": (Fault(body=b" \r\n\t "), WrongAnswerError),
    "text": (Fault(body=b"OK"), WrongAnswerError),
    "truncated": (Fault(body=b'{"data": [{"id": "r1"}, {"id": "r'), WrongAnswerError),
    "two values": (Fault(body=b'{"data": []} {"data": []}'), WrongAnswerError),
    "not a number": (Fault(body=b'{"data": [{"id": "r1", "n": NaN}]}'), WrongAnswerError),
    "invalid utf-8": (Fault(body=b'{"data": [{"id": "r1", "n": "\xff\xfe"}], "has_more": false}'), WrongAnswerError),
    "utf-8 surrogate": (Fault(body=b'{"data": [{"id": "\xed\xa0\x80"}], "has_more": false}'), WrongAnswerError),
    "utf-16": (Fault(body='{"data": [], "has_more": false}'.encode("utf-16")), WrongAnswerError),
    "error object": (Fault(body=b'{"error": {"message": "rate limited"}}'), WrongAnswerError),
    "error text beside records": (Fault(body=b'{"data": [{"id": "r1"}], "error": "partial"}'), WrongAnswerError),
    "errors": (Fault(body=b'{"errors": [{"code": 1}], "data": null}'), WrongAnswerError),
    "two lists": (Fault(body=b'{"data": [{"id": "r1"}], "data": [], "has_more": false}'), WrongAnswerError),
    "two ends": (
        Fault(body=b'{"data": [], "has_more": true, "has_more": false, "next_cursor": null}'),
        WrongAnswerError,
    ),
    "nested beyond all measure": (Fault(body=DEEP), BadRecordError),
    "null": (Fault(body=b"null"), RecordsPathError),
    "a number": (Fault(body=b"12"), RecordsPathError),
    "message only": (Fault(body=b'{"message": "Forbidden"}'), RecordsPathError),
    "a list instead": (Fault(body=b'[{"id": "r1"}]'), RecordsPathError),
    "data null": (Fault(body=b'{"data": null, "has_more": false}'), RecordsPathError),
    "data one object": (Fault(body=b'{"data": {"id": "r1"}, "has_more": false}'), RecordsPathError),
    "data a text": (Fault(body=b'{"data": "r1", "has_more": false}'), RecordsPathError),
    "record a text": (Fault(body=b'{"data": ["r1"], "has_more": false}'), BadRecordError),
    "record null": (Fault(body=b'{"data": [null], "has_more": false}'), BadRecordError),
    "record a list": (Fault(body=b'{"data": [[]], "has_more": false}'), BadRecordError),
}


@pytest.mark.parametrize(("spec", "page"), [(KEYED, 3), (TOKENS, 1)], ids=["keyed, page 3", "tokens, page 1"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none(name: str, spec: Mapping[str, Any], page: int, make_scene: MakeScene) -> None:
    """Whatever comes instead of a page stops the run with its own error; the pages before it stay, exactly."""
    scene, (fault, kind) = make_scene(spec), ANSWERS[name]
    scene.api.rows = rows(45)
    scene.api.fault = lambda number, asked: fault if number >= page else None

    exc = scene.stops(kind)

    assert exc.page == page
    assert exc.record == (1 if name.startswith("record") else None)
    scene.assert_whole()
    assert scene.ledger()[-1].position.pages == page - 1
    assert exc.position == scene.ledger()[-1].position.as_json()
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_refusal_of_the_first_page(status: int, any_scene: Scene) -> None:
    """A refused first request is a mistake in the config, and says so."""
    any_scene.api.rows = rows(5)
    any_scene.api.fault = lambda number, asked: Fault(status, b'{"error": "no such thing"}')
    exc = any_scene.stops(RequestRefusedError)
    assert str(status) in str(exc)
    assert exc.page == 1
    assert any_scene.stored() == {}
    any_scene.assert_exact_after_repair()


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_refused_token_stops(status: int, make_scene: MakeScene) -> None:
    """A page token that is refused later on has expired; the walk keeps its place and starts over when asked."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(35)
    scene.api.fault = lambda number, asked: Fault(status, b"{}") if "cursor" in asked.params else None
    exc = scene.stops(TokenExpiredError)
    assert exc.page == 2
    scene.assert_whole()
    scene.assert_exact_after_repair(reset=True)


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_refused_keys_lead_back_to_the_beginning(status: int, scene: Scene) -> None:
    """An API that refuses every key is asked from the beginning, a few times, then the walk stops."""
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(status, b"{}") if "starting_after" in asked.params else None
    scene.stops(AnchorLostError)
    assert len(scene.api.asked) < 40
    assert scene.stored().items() <= scene.served().items()
    scene.assert_exact_after_repair(reset=True)


@pytest.mark.parametrize("fault", [Fault(503, b""), Fault(429, b""), Fault(cut=5)], ids=["503", "429", "cut"])
def test_a_fault_that_passes_is_asked_again(fault: Fault, any_scene: Scene, pauses: list[float]) -> None:
    """One bad answer in two does not stop a walk, nor does it lose or double anything."""
    any_scene.api.rows = rows(45)
    any_scene.api.fault = lambda number, asked: fault if number % 2 else None
    summary = any_scene.run()
    assert summary.complete
    assert summary.requests == len(any_scene.api.asked) == 2 * summary.pages
    assert len([pause for pause in pauses if pause > 0]) >= summary.pages
    any_scene.assert_exact()


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 6, 7), ("999999999999", 0, 20), ("0", 0, 20), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 20), ("soon", 0, 20)],
)
def test_retry_after_is_obeyed(header: str, least: float, most: float, scene: Scene, pauses: list[float]) -> None:
    """The API's `Retry-After` is the pause; where it is nothing, past, a word or thousands of years, ours is."""
    scene.api.rows = rows(3)
    scene.api.fault = lambda number, asked: Fault(429, b"", {"Retry-After": header}) if number == 1 else None
    assert scene.run().complete
    assert least <= max(pauses) <= most


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_is_longer_than_a_task_waits(status: int, scene: Scene, pauses: list[float]) -> None:
    """The run stops and says until when; what was read is kept, and the next run goes on at the same page."""
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(status, b"", {"Retry-After": "3600"}) if number == 2 else None
    before = datetime.now(timezone.utc)
    exc = scene.stops(QuotaSpentError)
    assert exc.until is not None
    assert timedelta(seconds=3590) < exc.until - before < timedelta(seconds=3610)
    assert f"{exc.until:%Y-%m-%d %H:%M:%S} UTC" in exc.what
    assert (exc.page, pauses) == (2, [0.0])
    scene.assert_whole()
    scene.assert_exact_after_repair()
    assert scene.api.asked[2].params == scene.api.asked[1].params


def test_nobody_answers(scene: Scene, connect: Connect) -> None:
    """Without a listening API the run stops as one to be tried again, having written nothing."""
    url = scene.api.url
    scene.api.rows = rows(3)

    class Gone:
        url = f"http://127.0.0.1:{free_port()}"

    served, scene.api = scene.api, Gone()
    exc = scene.stops(ApiUnavailableError)
    assert "refused" in str(exc)
    scene.api = served
    assert scene.api.url == url
    assert scene.stored() == {}
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("header", ["line\nbreak", "\u2603"], ids=["line break", "not latin-1"])
def test_a_login_that_no_header_can_carry(header: str, scene: Scene) -> None:
    """A password pasted with a line break or a strange character is a mistake in the connection, not a crash."""
    scene.api.rows = rows(3)
    scene.session.headers["Authorization"] = f"Bearer {header}"
    scene.stops(RequestRefusedError)
    assert scene.stored() == {}
    del scene.session.headers["Authorization"]
    scene.assert_exact_after_repair()


# --- Keys ---------------------------------------------------------------------------------------------------------

BAD_KEYS: Mapping[str, bytes] = {
    "missing": b'{"name": "x"}',
    "null": b'{"id": null}',
    "empty": b'{"id": ""}',
    "an object": b'{"id": {"a": 1}}',
    "a list": b'{"id": [1]}',
    "true": b'{"id": true}',
    "a fraction": b'{"id": 1.0}',
    "an exponent": b'{"id": 1e3}',
    "a NUL": b'{"id": "a\\u0000b"}',
    "half a surrogate pair": b'{"id": "\\ud800"}',
    "only in other letters": b'{"ID": "x"}',
    "too long to be indexed": b'{"id": "%s"}'
    % "".join(chr(33 + (n * n * 31 + n) % 89 + 30) for n in range(9000)).replace("\\", "x").encode(),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_record_without_a_usable_key(name: str, make_scene: MakeScene) -> None:
    """A record whose key cannot be one stops the walk, names page and record, and nothing of its page is stored."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)
    right, scene.api.rows[13] = scene.api.rows[13], BAD_KEYS[name]

    exc = scene.stops(BadRecordError)

    assert (exc.page, exc.record) == (2, 4)
    scene.api.rows[13] = right
    scene.assert_whole()
    scene.assert_exact_after_repair()


@pytest.mark.parametrize(
    "raw", [b'{"v": 1}', b'{"id": null, "meta": {"id": "x"}}', b'{"meta": null}', b'{"meta": []}', b'{"meta": "x"}']
)
def test_a_nested_key_that_is_not_there(raw: bytes, make_scene: MakeScene) -> None:
    """A nested key below nothing, null, a list or a text is as missing as a plain one."""
    scene = make_scene(TOKENS, key="meta.key")
    scene.api.rows = [b'{"meta": {"key": "a"}}', raw]
    exc = scene.stops(BadRecordError)
    assert (exc.page, exc.record) == (1, 2)
    assert scene.stored() == {}
    scene.api.rows[1] = b'{"meta": {"key": "b"}}'
    scene.run()
    assert set(scene.stored()) == {"a", "b"}


@pytest.mark.parametrize(
    ("key", "raw", "stored"),
    [
        ("id", b'{"id": "r\\u00e9\\"\\\\\\n"}', 'r\u00e9"\\\n'),
        ("id", b'{"id": "\\ud83d\\ude00"}', "\U0001f600"),
        ("id", b'{"id": 7}', "7"),
        ("id", b'{"id": -7}', "-7"),
        ("id", b'{"id": 123456789012345678901234567890}', "123456789012345678901234567890"),
        ("id", b'{"id": " spaced "}', " spaced "),
        ("id", b'{"id": "null"}', "null"),
        ("id", b'{"id":"first","id":"last"}', None),
        ("\u0069d", b'{"\\u0069d": "escaped name"}', "escaped name"),
        ("a.b.c", b'{"a": {"b": {"c": "deep", "d": 1}}}', "deep"),
        (["a", "b"], b'{"b": 1, "a": "x"}', '["x","1"]'),
        (["a", "b"], b'{"a": "x,y", "b": "z"}', '["x,y","z"]'),
        (["a", "b"], b'{"a": "x", "b": "y,z"}', '["x","y,z"]'),
        (["a.b", "a.c"], b'{"a": {"c": 2, "b": 1}}', '["1","2"]'),
        (["a", "b"], b'{"a": "x", "b": null}', None),
        (["a", "b"], b'{"a": "x"}', None),
        (["a", "b"], b'{"a": "x", "b": ""}', None),
    ],
)
def test_keys_of_every_kind(key: Any, raw: bytes, stored: str | None, make_scene: MakeScene) -> None:
    """Texts, whole numbers of any size, nested and composite keys are kept apart exactly; else the record is bad."""
    scene = make_scene(TOKENS, key=key)
    scene.api.rows = [raw]
    if stored is None:
        assert scene.stops(BadRecordError).record == 1
        assert scene.stored() == {}
    else:
        scene.run()
        assert scene.stored() == {stored: exact(raw)}


def test_keys_that_only_look_alike_stay_apart(make_scene: MakeScene) -> None:
    """Neither letter case, nor accents written in two ways, nor commas in parts of a key make two records one."""
    scene = make_scene(TOKENS, key=["a", "b"])
    pairs = [
        ("x", "y"),
        ("X", "y"),
        ("x,y", ""),
        ("é", "1"),
        ("e\u0301", "1"),
        ('x","y', "1"),
        ("x", "y "),
        (" x", "y"),
    ]
    scene.api.rows = [json.dumps({"a": a, "b": b + "."}).encode() for a, b in pairs]
    scene.run()
    assert sorted(map(repr, scene.stored().values())) == sorted(repr(exact(raw)) for raw in scene.api.rows)


@pytest.mark.parametrize("apart", [1, 5, 10, 23], ids=lambda apart: f"{apart} apart")
def test_a_record_twice_with_equal_bytes(apart: int, make_scene: MakeScene) -> None:
    """The same record again, on one page or on another, is one record and no change."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(30)
    scene.api.rows.insert(3 + apart, scene.api.rows[3])
    summary = scene.run()
    assert summary.counts["created"] == 30
    assert summary.counts["unchanged"] == 1
    assert scene.revisions() == {1}
    scene.assert_exact()


@pytest.mark.parametrize("page", [1, 3])
def test_a_key_twice_on_a_page_with_different_bytes(page: int, any_scene: Scene) -> None:
    """Two records under one key on one page cannot be told apart: the run stops and stores none of the page."""
    scene = any_scene
    scene.api.rows = rows(40)
    body = _two_of_one_key(scene, page)
    scene.api.fault = lambda number, asked: Fault(body=body) if number >= page else None
    exc = scene.stops(DoubledKeyError)
    assert (exc.page, exc.record, exc.key) == (page, 3, "twice")
    scene.assert_whole()
    scene.assert_exact_after_repair()


def _two_of_one_key(scene: Scene, page: int) -> bytes:
    """A page in place of the given one, that holds a key twice."""
    overlap = [] if page == 1 or scene.spec["path"] == "/tokens" else [scene.api.rows[10 * (page - 1) - page + 1]]
    first = overlap or [b'{"id": "once"}']
    records = b",".join([*first, b'{"id": "twice", "v": 1}', b'{"id": "twice", "v": 2}'])
    token = b'"t%d"' % (10 * page)
    return b'{"data": [' + records + b'], "has_more": true, "next_cursor": ' + token + b"}"


def test_a_key_twice_with_versions(make_scene: MakeScene) -> None:
    """Where versions tell two copies on one page apart, the newer one is stored, in whatever order they came."""
    scene = make_scene(TOKENS, version="at")
    scene.api.rows = [
        b'{"id": "a", "at": "2026-01-02T00:00:00Z", "v": "new"}',
        b'{"id": "a", "at": "2026-01-01T23:00:00-02:00", "v": "newest"}',
        b'{"id": "a", "at": "2026-01-01T00:00:00Z", "v": "old"}',
    ]
    scene.run()
    assert scene.stored() == {"a": exact(scene.api.rows[1])}


@pytest.mark.parametrize(
    "version", [b'"2026-01-01"', b'"2026-01-01T00:00:00"', b'"yesterday"', b"1767225600", b"true", b'""']
)
def test_a_version_that_is_no_instant(version: bytes, make_scene: MakeScene) -> None:
    """A version without a zone, or that is no instant at all, would be judged wrongly: the run stops."""
    scene = make_scene(TOKENS, version="at")
    scene.api.rows = [b'{"id": "a", "at": "2026-01-01T00:00:00Z"}', b'{"id": "b", "at": ' + version + b"}"]
    exc = scene.stops(BadRecordError)
    assert (exc.page, exc.record, exc.key) == (1, 2, "b")
    assert scene.stored() == {}


@pytest.mark.parametrize(
    ("timestamps", "good", "wrong"),
    [
        ({"zone": "Europe/Berlin"}, '"2026-01-01T00:00:00"', '"2026-10-25T02:30:00"'),
        ({"zone": "Europe/Berlin"}, '"2026-01-01T00:00:00"', '"2026-03-29T02:30:00"'),
        ({"zone": "Europe/Berlin"}, '"2026-01-01T00:00:00"', '"20260101"'),
        ({"format": "unix"}, "1767225600", "1767225600000"),
        ({"format": "unix"}, '"1767225600"', '"2026-01-01T00:00:00Z"'),
        ({"format": "unix_ms"}, "1767225600000", '"1.767e12"'),
        ({"format": "%d/%m/%Y", "zone": "UTC"}, '"31/12/2026"', '"12/31/2026"'),
    ],
)
def test_a_version_that_is_not_as_declared(timestamps: Any, good: str, wrong: str, make_scene: MakeScene) -> None:
    """What `timestamps` declares is read so; another spelling, a local time that is twice or never stop the run."""
    scene = make_scene(TOKENS, version="at", timestamps=timestamps)
    scene.api.rows = [b'{"id": "%s", "at": %s}' % (key, at.encode()) for key, at in ((b"a", good), (b"b", wrong))]
    exc = scene.stops(BadRecordError)
    assert (exc.page, exc.record, exc.key) == (1, 2, "b")
    assert wrong.strip('"') not in str(exc)
    assert scene.stored() == {}
    scene.api.rows[1] = b'{"id": "b", "at": %s}' % good.encode()
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_instants_at_the_ends_of_time(at: str, zone: str, make_scene: MakeScene, scenes_dsn: str) -> None:
    """The instants that some APIs send for "never" are versions too, in whatever zone the server's clock is shown."""
    scene = make_scene(TOKENS, version="at")
    scene.connect = connecting(make_conninfo(scenes_dsn, options=f"-c TimeZone={zone}"))
    for value in (1, 2):
        scene.api.rows = [json.dumps({"id": "a", "at": at, "v": value}).encode()]
        scene.run(reset=True)
        scene.assert_exact()


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_instants_beyond_the_calendar(at: str, make_scene: MakeScene) -> None:
    """An instant before the year 1 or after 9999 in UTC is no version that can be compared."""
    scene = make_scene(TOKENS, version="at")
    scene.api.rows = [json.dumps({"id": "a", "at": at}).encode()]
    assert scene.stops(BadRecordError).record == 1


def test_order_fields_of_any_size(make_scene: MakeScene) -> None:
    """A number to order by may have an exponent that no decimal holds: a named error, not a crash."""
    scene = make_scene(TOKENS, order=["n"])
    scene.api.rows = [b'{"id": "a", "n": 1e400}', b'{"id": "b", "n": 1e99999999999999999999}']
    exc = scene.stops(BadRecordError)
    assert (exc.page, exc.record) == (1, 2)
    assert scene.stored() == {}


def test_a_promised_order_that_is_not_kept(any_scene: Scene) -> None:
    """A record before one that it should follow stops the walk, with the record's number on its page."""
    scene = any_scene
    scene.api.rows = rows(25)
    scene.spec["order"] = ["n"]
    first = 10 if scene.spec["path"] == "/tokens" else 9
    right = list(scene.api.rows)
    scene.api.rows[first + 3] = scene.api.rows[first + 3].replace(b'"n": ', b'"n": -')
    exc = scene.stops(UnorderedStreamError)
    assert (exc.page, exc.record) == (2, 4)
    assert exc.key == scene.api.key_of(right[first + 3])
    scene.api.rows = right
    scene.assert_whole()
    scene.assert_exact_after_repair()


# --- The path to the records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("@", b'[{"id": "a"}]'),
        ("data", b'{"next_cursor": null, "data": [{"id": "a"}]}'),
        ("a.b", b'{"a": {"b": [ {"id": "a"} ], "c": []}}'),
        ("errors", b'{"errors": [{"id": "a"}], "next_cursor": null}'),
    ],
)
def test_paths_that_select_a_list(path: str, body: bytes, make_scene: MakeScene) -> None:
    """The list may be the answer itself, or lie at any depth, under any name."""
    told = {"take": None, "header": "Next-Page"} if path == "@" else {"last": ["null", "absent"]}
    scene = make_scene(TOKENS, records=path, pages=_more(TOKENS["pages"], **told))
    scene.api.fault = lambda number, asked: Fault(body=body)
    assert scene.run().complete
    assert set(scene.stored()) == {"a"}


@pytest.mark.parametrize("path", ["items", "data.items", "meta", "meta.count", "meta.list.deeper", "Data"])
def test_paths_that_select_no_list(path: str, any_scene: Scene) -> None:
    """A wrong `records` never means "no records": the run stops, and says what the answer holds."""
    scene, right = any_scene, any_scene.spec["records"]
    scene.api.rows = rows(12)
    whole = scene.api.right

    def with_meta(number: int, asked: Asked) -> Fault:
        body = whole(asked).body or b""
        return Fault(body=b'{"meta": {"count": 12, "list": []}, ' + body[1:])

    scene.api.fault = with_meta
    scene.spec["records"] = path
    exc = scene.stops(RecordsPathError)
    assert exc.page == 1
    assert scene.stored() == {}
    scene.spec["records"] = right
    scene.assert_exact_after_repair()


def test_an_empty_list_is_an_empty_object(any_scene: Scene) -> None:
    """No records at all is no error when the API says so in its own words."""
    summary = any_scene.run()
    assert summary.complete
    assert summary.records == 0
    any_scene.assert_exact()


# --- Paging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_tokens_that_run_in_a_circle(length: int, lead: int, make_scene: MakeScene) -> None:
    """A circle of page tokens of any length is found before long, wherever it begins; no record is lost or doubled."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows((lead + length + 2) * 10)

    def circle(number: int, asked: Asked) -> Fault | None:
        here = int(asked.params.get("cursor", "t0")[1:]) // 10
        body = scene.api.right(asked).body or b""
        if here < lead + length:
            return None
        return Fault(body=body.replace(b'"t%d"' % ((here + 1) * 10), b'"t%d"' % (10 * (here + 1 - length))))

    scene.api.fault = circle
    scene.stops(RepeatedPageError)
    assert len(scene.api.asked) <= 4 * (lead + length) + 4
    stored = scene.stored()
    assert stored.items() <= scene.served().items()
    assert scene.revisions() == {1}
    scene.assert_exact_after_repair(reset=True)


def test_fresh_tokens_for_the_same_page(make_scene: MakeScene) -> None:
    """An API that ignores the token but gives a new one each time does not keep the walk going for ever."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(30)
    numbers = itertools.count(1000)

    def ignored(number: int, asked: Asked) -> Fault:
        first = scene.api.right(Asked(asked.path, {"limit": "10"}, {}))
        return Fault(body=(first.body or b"").replace(b'"t10"', b'"t%d"' % next(numbers)))

    scene.api.fault = ignored
    exc = scene.stops(RepeatedPageError)
    assert exc.page == 2
    scene.assert_whole()
    scene.assert_exact_after_repair(reset=True)


@pytest.mark.parametrize("more", ["has_more", None], ids=["has_more", "no has_more"])
@pytest.mark.parametrize("count", [2, 10, 11])
def test_a_paging_parameter_that_the_api_ignores(more: str | None, count: int, make_scene: MakeScene) -> None:
    """A misspelt `send` gives the first page for ever: never taken for the whole unless it is."""
    misspelt = _more(KEYED["pages"], send="startingafter", more=more)
    scene = make_scene(KEYED, pages=misspelt)
    scene.api.rows = rows(count)
    if more and count <= 10:
        assert scene.run().complete
    else:
        exc = scene.stops(RepeatedPageError)
        assert exc.page == 2
        assert "startingafter" in str(exc)
        scene.assert_whole()
        scene.spec["pages"] = _more(KEYED["pages"], more=more)
        scene.assert_exact_after_repair()
    scene.assert_exact()


def test_a_misspelt_token_parameter(make_scene: MakeScene) -> None:
    """A token sent under a wrong name gives the first page again, and the run stops at it."""
    scene = make_scene(TOKENS, pages=_more(TOKENS["pages"], send="curser"))
    scene.api.rows = rows(25)
    scene.stops(RepeatedPageError)
    scene.assert_whole()
    scene.spec = {**TOKENS}
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("value", [b"", b', "has_more": null', b', "has_more": 1', b', "has_more": "true"'])
@pytest.mark.parametrize("page", [1, 3])
def test_has_more_that_says_nothing(value: bytes, page: int, scene: Scene) -> None:
    """A missing `has_more` is no "no": the run stops before it believes in an end."""
    scene.api.rows = rows(40)

    def silent(number: int, asked: Asked) -> Fault | None:
        body = (scene.api.right(asked).body or b"").replace(b', "has_more": true', value)
        return Fault(body=body) if number >= page else None

    scene.api.fault = silent
    exc = scene.stops(WrongAnswerError)
    assert exc.page == page
    assert "has_more" in str(exc)
    scene.assert_whole()
    scene.assert_exact_after_repair()


def test_more_is_promised_but_nothing_comes(scene: Scene) -> None:
    """An empty page that says there is more is no end."""
    scene.api.rows = rows(3)
    scene.api.fault = lambda number, asked: Fault(body=b'{"data": [], "has_more": true}')
    assert scene.stops(RepeatedPageError).page == 1
    scene.assert_exact_after_repair()


ENDS = {"null": b'"next_cursor": null', "empty": b'"next_cursor": ""', "absent": b'"other": 1'}


@pytest.mark.parametrize("sent", ENDS)
@pytest.mark.parametrize(
    "declared", [("null",), ("empty",), ("absent",), ("null", "absent"), ("null", "absent", "empty")]
)
def test_how_the_last_token_looks(sent: str, declared: tuple[str, ...], make_scene: MakeScene) -> None:
    """Only a token that ends as declared is an end; another kind of nothing stops the run."""
    scene = make_scene(TOKENS, pages=_more(TOKENS["pages"], last=list(declared)))
    scene.api.rows = rows(25)

    def end(number: int, asked: Asked) -> Fault:
        return Fault(body=(scene.api.right(asked).body or b"").replace(b'"next_cursor": null', ENDS[sent]))

    scene.api.fault = end
    if sent in declared:
        assert scene.run().complete
    else:
        exc = scene.stops(WrongAnswerError)
        assert exc.page == 3
        assert sent in str(exc)
        scene.assert_whole()
        scene.spec["pages"] = _more(TOKENS["pages"], last=[sent])
        assert scene.run().complete
    scene.assert_exact()


@pytest.mark.parametrize(
    "token", [b"true", b"{}", b"[1]", b"1.5", b'"\\ud800"', b'"a\\u0000b"'], ids=lambda token: token.decode()
)
def test_a_token_that_is_none(token: bytes, make_scene: MakeScene) -> None:
    """A token that is no text and no whole number, or that Postgres cannot hold, is a wrong answer."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)

    def odd(number: int, asked: Asked) -> Fault | None:
        body = (scene.api.right(asked).body or b"").replace(b'"t20"', token)
        return Fault(body=body) if number >= 2 else None

    scene.api.fault = odd
    assert scene.stops(WrongAnswerError).page == 2
    scene.assert_whole()
    scene.assert_exact_after_repair()


def test_tokens_may_be_numbers(make_scene: MakeScene) -> None:
    """A token that is a whole number is sent back by its digits, however many."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)
    prefix = b"1" + b"0" * 40

    def numbers(number: int, asked: Asked) -> Fault:
        token = asked.params.get("cursor", "")
        known = {**asked.params, "cursor": "t" + token.removeprefix(prefix.decode())} if token else asked.params
        body = scene.api.right(Asked(asked.path, known, {})).body or b""
        return Fault(body=body.replace(b'"t', prefix).replace(b'"}', b"}"))

    scene.api.fault = numbers
    assert scene.run().complete
    scene.assert_exact()


@pytest.mark.parametrize("count", [1, 8, 40])
@pytest.mark.parametrize("cap", [7, 2])
@pytest.mark.parametrize("more", ["has_more", None], ids=["has_more", "no has_more"])
def test_the_server_caps_pages(cap: int, count: int, more: str | None, make_scene: MakeScene) -> None:
    """Fewer records a page than asked for are no end: the walk advances by what it has seen."""
    scene = make_scene(KEYED, pages=_more(KEYED["pages"], more=more))
    scene.api.rows, scene.api.cap = rows(count), cap
    assert scene.run().complete
    scene.assert_exact()


@pytest.mark.parametrize("cap", [7, 2, 1])
def test_the_server_caps_pages_of_tokens(cap: int, make_scene: MakeScene) -> None:
    """Fewer records a page than asked for are no end, with tokens down to one."""
    scene = make_scene(TOKENS)
    scene.api.rows, scene.api.cap = rows(30), cap
    assert scene.run().complete
    scene.assert_exact()


def test_pages_of_one_record_cannot_overlap(scene: Scene) -> None:
    """With one record a page nothing proves that none was missed: the run stops, and goes on once pages are larger."""
    scene.api.rows, scene.api.cap = rows(5), 1
    scene.stops(RepeatedPageError)
    scene.assert_whole()
    scene.api.cap = 2
    scene.assert_exact_after_repair()


def test_another_way_of_paging_in_the_middle(scene: Scene) -> None:
    """A place made under one `pages.by` is not carried over to another; put back, the walk goes on."""
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(401) if number == 2 else None
    scene.stops(LoginError)
    scene.spec = {**TOKENS}
    asked = len(scene.api.asked)
    scene.stops(PositionMismatchError)
    assert len(scene.api.asked) == asked
    scene.spec = {**KEYED}
    scene.assert_exact_after_repair()


# --- Postgres ---------------------------------------------------------------------------------------------------------


def test_postgres_is_down(scene: Scene) -> None:
    """Without Postgres nothing is asked of the API."""
    scene.api.rows = rows(3)
    down = connecting(f"host=127.0.0.1 port={free_port()} dbname=nowhere user=nobody connect_timeout=2")
    exc = scene.stops(StoreUnavailableError, postgres=down)
    assert "refused" in str(exc)
    assert scene.api.asked == []
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("conninfo", ["this is no connection", "postgresql://a:b@[c/d", "hots=127.0.0.1"])
def test_a_connection_that_cannot_be_understood(conninfo: str, scene: Scene) -> None:
    """A misspelt connection string is a mistake in the config, told without the string."""
    exc = scene.stops(ConnectionMissingError, postgres=connecting(conninfo))
    assert conninfo not in str(exc)
    assert scene.api.asked == []


def test_postgres_goes_away(any_scene: Scene) -> None:
    """A connection that is lost between pages loses nothing: the run ends as one to be tried again."""
    scene = any_scene
    scene.api.rows = rows(45)
    opened: list[Any] = []

    def connect() -> Any:
        opened.append(scene.connect())
        return opened[-1]

    def cut(number: int, asked: Asked) -> Fault | None:
        if number == 3:
            with scene.connect() as other:
                other.execute("select pg_terminate_backend(%s)", [opened[0].info.backend_pid])
        return None

    scene.api.fault = cut
    runner = Runner()
    scene.stops(StoreUnavailableError, postgres=connect, runner=runner)
    scene.assert_whole()
    scene.assert_exact_after_repair(runner=runner)


def test_no_books(make_scene: MakeScene) -> None:
    """Without the bookkeeping schema the run stops before the first request, and names the command that makes it."""
    scene = make_scene()
    scene.api.rows, scene.books = rows(3), f"{scene.name}_books"
    exc = scene.stops(SchemaMissingError)
    assert "airflow extract migrate" in str(exc)
    assert scene.api.asked == []
    scene.migrate()
    scene.assert_exact_after_repair()


@pytest.mark.parametrize(
    ("statement", "repair"),
    [
        ("delete from {books}.migration", "drop schema {books} cascade"),
        ("drop table {books}.fence", "drop schema {books} cascade"),
        ("drop table {books}.ledger cascade", "drop schema {books} cascade"),
        ("drop table {table}", "select 1"),
        ("drop table {table}; create table {table} (id text)", "drop table {table}"),
        ("alter table {table} drop column raw_hash", "drop table {table}"),
        ("drop table {table}; create view {table} as select 1 as key", "drop view {table}"),
    ],
)
def test_tables_that_are_not_as_they_should(statement: str, repair: str, make_scene: MakeScene) -> None:
    """Missing, old and foreign tables stop the run before the first request; repaired, it is exact."""
    scene = make_scene(own_books=True)
    scene.api.rows = rows(3)
    names = {"books": sql.Identifier(scene.books), "table": sql.Identifier(*scene.source.table(scene.object))}
    with scene.connect() as conn:
        conn.execute(sql.SQL(statement).format(**names))
    scene.stops(SchemaMissingError)
    assert scene.api.asked == []
    with scene.connect() as conn:
        conn.execute(sql.SQL(repair).format(**names))
    scene.migrate()
    scene.assert_exact_after_repair()


def test_a_table_of_somebody_else_is_left_alone(scene: Scene) -> None:
    """Neither a run nor a migration touches a table of that name that is none of ours."""
    table = sql.Identifier(*scene.source.table(scene.object))
    with scene.connect() as conn:
        conn.execute(sql.SQL("drop table {0}; create table {0} (id text); insert into {0} values ('x')").format(table))
    with pytest.raises(SchemaMissingError, match="none of ours"):
        migrate(scene.connect, [scene.source], scene.books)
    scene.stops(SchemaMissingError)
    with scene.connect() as conn:
        assert conn.execute(sql.SQL("select id from {}").format(table)).fetchall() == [("x",)]


RIGHTS = {
    "usage of the books": "usage on schema {books}",
    "usage of the records": "usage on schema {records}",
    "reading the ledger": "select on {books}.ledger",
    "writing the ledger": "insert on {books}.ledger",
    "writing the fence": "update on {books}.fence",
    "reading the migrations": "select on {books}.migration",
    "reading the table": "select on {table}",
    "inserting records": "insert on {table}",
}


def role_of(scene: Scene) -> str:
    """A worker's role. Roles belong to the whole server, and other test processes may use the same one."""
    return f"{scene.name}_{os.getpid()}"


@pytest.fixture
def worker(scene: Scene) -> Iterator[Connect]:
    """Opens connections of a role with the rights that docs/operations.md lists, and no others."""
    role = role_of(scene)
    names = {"role": sql.Identifier(role), "books": sql.Identifier(scene.books), "records": sql.Identifier(scene.name)}
    with scene.connect() as conn:
        conn.execute(
            sql.SQL(
                "create role {role}; grant usage on schema {books}, {records} to {role};"
                "grant select, insert, update on all tables in schema {books}, {records} to {role};"
                "grant delete on {books}.owner to {role}"
            ).format(**names)
        )

    def connect() -> psycopg.Connection[tuple[Any, ...]]:
        conn = scene.connect()
        conn.execute(sql.SQL("set role {role}").format(**names))
        conn.commit()
        return conn

    yield connect
    with scene.connect() as conn:
        conn.execute(sql.SQL("drop owned by {role}; drop role {role}").format(**names))


@pytest.mark.parametrize("name", RIGHTS)
def test_a_right_is_missing(name: str, scene: Scene, worker: Connect) -> None:
    """Whichever right is missing, the run stops with a named error and stores nothing; with it, the copy is exact."""
    scene.api.rows = rows(12)
    names = {
        "books": sql.Identifier(scene.books),
        "records": sql.Identifier(scene.name),
        "table": sql.Identifier(*scene.source.table(scene.object)),
    }
    right, role = sql.SQL(RIGHTS[name]).format(**names), sql.Identifier(role_of(scene))
    with scene.connect() as conn:
        conn.execute(sql.SQL("revoke {} from {}").format(right, role))
    exc = scene.stops(StoreRightsError, postgres=worker)
    assert isinstance(exc, FixConfig)
    assert scene.stored() == {}
    with scene.connect() as conn:
        conn.execute(sql.SQL("grant {} to {}").format(right, role))
    scene.assert_exact_after_repair(postgres=worker)


def test_the_documented_rights_are_enough(scene: Scene, worker: Connect) -> None:
    """A role with the rights of docs/operations.md can do all that a run does, changes included."""
    scene.api.rows = rows(25)
    scene.run(postgres=worker)
    scene.api.rows = [raw.replace(b'"n": ', b'"n": 1') for raw in scene.api.rows]
    scene.run(postgres=worker, reset=True)
    scene.assert_exact()


def test_an_object_that_is_not_declared(scene: Scene) -> None:
    """Asking for an object that the source does not have stops before anything is done, and names those it has."""
    with pytest.raises(SourceError, match="Choose one of: things") as caught:
        run(scene.source, "thinks", postgres=scene.connect, client=scene.client())
    assert (caught.value.source, caught.value.object) == (scene.name, "thinks")
    assert scene.api.asked == []
