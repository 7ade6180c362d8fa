"""What an API repeats of the login in its links is stored nowhere, and the link works all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from psycopg import sql

from airflow_extract_provider.extract.api.address import without_secrets
from airflow_extract_provider.extract.api.auth import parameter_login
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.excerpt import forms_of
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import RequestRefusedError
from airflow_extract_provider.extract.page import Page
from tests.extract.scene import Scene, rows
from tests.loopback import Asked, Fault

SECRET = "marked/key+4711="
EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)
LINKED: dict[str, Any] = {"path": "/tokens", "records": "data", "key": "id"}
PAGES: dict[str, dict[str, Any]] = {
    "a member": {"by": "next_link", "take": "next"},
    "a member inside": {"by": "next_link", "take": "paging.links.next"},
    "a header": {"by": "link_header"},
}


def _linked(scene: Scene, asked: Asked) -> Fault:
    """The right page, with the link to the next one in all places, the key in it as it came."""
    page = json.loads(scene.api.right(asked).body or b"{}")
    token = page.pop("next_cursor")
    link = (
        f"{scene.api.url}/tokens?api_key={quote(SECRET, safe='')}&cursor={token}&k={quote(SECRET)}" if token else None
    )
    page |= {"next": link, "paging": {"links": {"next": link, "first": "/tokens"}, "total": 12345678901234567890}}
    headers = {"Link": f'<{scene.api.url}/tokens>; rel="first", <{link}>; rel="next"'} if link else {}
    return Fault(200, json.dumps(page).encode(), headers)


@pytest.mark.parametrize("kind", PAGES)
def test_a_link_that_repeats_the_login(kind: str, make_scene: Callable[..., Scene]) -> None:
    """Ledger, cursor and summary do not hold it; each request does, once; the records keep what they say."""
    scene = make_scene({**LINKED, "pages": PAGES[kind]})
    scene.api.rows = [*rows(25), json.dumps({"id": "own", "note": f"https://a.example/?api_key={SECRET}"}).encode()]
    scene.api.fault = lambda number, asked: _linked(scene, asked)
    auth = parameter_login("api_key", SECRET)
    client = ApiClient(scene.source, scene.session, scene.api.url, auth=auth, bounds=Bounds(2, 2))
    summary = scene.run(client=client)
    assert summary.complete
    scene.assert_exact()
    with scene.connect() as conn:
        ledger = conn.execute(
            sql.SQL("select coalesce(string_agg(l::text, ''), '') from {}.ledger l where source = %s").format(
                sql.Identifier(scene.books)
            ),
            [scene.name],
        ).fetchone()
    assert ledger is not None
    told = str(ledger[0]) + json.dumps(summary.as_dict())
    assert "cursor=t20" in told
    assert [form for form in (SECRET, quote(SECRET), quote(SECRET, safe=""), json.dumps(SECRET)) if form in told] == []
    assert [asked.params["api_key"] for asked in scene.api.asked] == [SECRET] * len(scene.api.asked)
    assert {tuple(asked.params) for asked in scene.api.asked[1:3]} == {("cursor", "api_key")}


@pytest.mark.parametrize("token", ["abc#1", "a?b&&c#", "//u@h/x", "?", "a%2Fb+c d", "http://[x", "7"])
def test_a_token_beside_the_login(token: str) -> None:
    """What holds no secret stays to the letter, whatever stands beside it: else another page would be asked for."""
    told = {"next": token, "self": f"http://a.example/?api_key={quote(SECRET)}&x=1#y", "total": 2**53 + 1}
    page = Page((), EPOCH, {"paging": msgspec.Raw(json.dumps(told).encode())}, {"next-page": token, "x-key": SECRET})
    found = without_secrets(page, forms_of(SECRET), ("data",))
    assert json.loads(bytes(found.envelope["paging"])) == {**told, "self": "http://a.example/?x=1"}
    assert found.headers == {"next-page": token, "x-key": "***login***"}


WORDS = ("true", "1234", "beta", "production")
"""Values of a connection's headers that are no secrets, though they stand where secrets do."""


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("/a?include_archived=true&page=2", None),
        ("/accounts/1234/b?page=1234", None),
        ("99123400", None),
        ("/a?stage=production&token=abc", None),
        ("/a?api_key=1234&page=2", "/a?page=2"),
        ("/a?x=1234&page=2", None),
        ("/a?q=marked%2fkey%2b4711%3d&page=2", "/a?page=2"),
        ("http://me:marked/key+4711=@a.example/b", None),
        ("/marked%2Fkey%2B4711%3D/next", "/***login***/next"),
        ("cursor-marked/key+4711=-20", "cursor-***login***-20"),
    ],
)
def test_short_words_are_no_login(link: str, kept: str | None) -> None:
    """A filter that is left out of a link loses records: only what cannot be mistaken for anything else is."""
    page = Page((), EPOCH, {"next": msgspec.Raw(json.dumps(link).encode())}, {"link": f'<{link}>; rel="next"'})
    found = without_secrets(page, forms_of(SECRET, *WORDS), ("data",))
    shown = json.loads(bytes(found.envelope["next"]))
    if "me:" in link:
        assert SECRET not in shown
    else:
        assert shown == (kept or link)
        assert found.headers["link"] == f'<{kept or link}>; rel="next"'


@pytest.mark.parametrize(
    "spelled", ["marked%2fkey%2b4711%3d", r"marked\u002Fkey\u002B4711\u003D", "marked/key\\u002b4711="]
)
def test_a_link_that_spells_the_login_otherwise(spelled: str) -> None:
    """As .NET, Java and Go write URLs and JSON."""
    raw = f'"http://a.example/?x=1&api_key={spelled}"'.encode()
    found = without_secrets(Page((), EPOCH, {"next": msgspec.Raw(raw)}), forms_of(SECRET), ("data",))
    assert json.loads(bytes(found.envelope["next"])) == "http://a.example/?x=1"


@pytest.mark.parametrize("token", ["t-{secret}", "/things/{secret}/next"])
def test_a_token_that_is_the_login(token: str, make_scene: Callable[..., Scene]) -> None:
    """It is neither stored nor sent: the walk stops and says so."""
    scene = make_scene({**LINKED, "pages": {"by": "token", "take": "next_cursor", "send": "cursor"}})
    scene.api.rows = rows(25)
    body = json.dumps({"data": [], "next_cursor": token.format(secret=SECRET)}).encode()
    scene.api.fault = lambda number, asked: Fault(body=body)
    auth = parameter_login("api_key", SECRET)
    client = ApiClient(scene.source, scene.session, scene.api.url, auth=auth, bounds=Bounds(2, 2))
    exc = scene.stops(RequestRefusedError, client=client)
    assert "holds the login itself" in exc.what
    assert len(scene.api.asked) == 1
