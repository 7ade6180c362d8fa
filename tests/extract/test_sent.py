"""What a source file sends: headers and parameters, but no login. One is refused by its name, and its value not shown.

A source file is read by everyone who reads the DAGs; what it sends is in the source's repr, and in a DAG's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source, parse_source
from tests.extract.scene import TOKENS

SECRET = "marked-secret-4711"
LOGINS = [
    "Authorization",
    "proxy-authorization",
    "Cookie",
    "api_key",
    "apikey",
    "X-Api-Key",
    "X-Shopify-Access-Token",
    "PRIVATE-TOKEN",
    "access_token",
    "auth-token",
    "X-Auth-Token",
    "refresh_token",
    "client_secret",
    "secret",
    "password",
    "passwd",
    "X-Token",
]
PLAIN = [
    "Accept-Language",
    "Stripe-Version",
    "X-GitHub-Api-Version",
    "cursor",
    "key",
    "token",
    "page_token",
    "next_token",
    "continuation-token",
    "sort_key",
    "secretary",
    "author",
    "session_id",
]


def described(of_source: dict[str, Any] | None = None, **of_object: Any) -> Source:
    """A source with one object, and what else it or the object says."""
    objects = {"things": {**TOKENS, **of_object}}
    return parse_source({"source": "shop", "connection": "c", "objects": objects, **(of_source or {})}, "shop.yaml")


def refused(name: str, of_source: dict[str, Any] | None = None, **of_object: Any) -> None:
    """Such a source is none: the error tells the name and what to do, and no value."""
    with pytest.raises(SourceError) as caught:
        described(of_source, **of_object)
    assert f"`{name}` is a login: enter it in the connection" in str(caught.value)
    assert "shop.yaml" in str(caught.value)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.place}"
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_is_refused_wherever_it_stands(name: str) -> None:
    """As a header of the source or the object, as a parameter, in the query of a path; in any case of letters."""
    for spelled in (name, name.upper(), f" {name} "):
        refused(spelled.strip(), {"headers": {spelled: SECRET}})
        refused(spelled.strip(), headers={spelled: SECRET})
        refused(spelled.strip(), params={spelled: SECRET})
    refused(name, path=f"/tokens?limit=3&{name}={SECRET}")


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_login_is_sent(name: str) -> None:
    """Versions, languages, and the parameters by which pages are asked for."""
    given = {name: "x"}
    source = described(
        {"headers": given}, headers=given, params={f"{name}2": "x", **({} if name == "cursor" else given)}
    )
    assert dict(source.headers) == given


def test_a_template_is_the_walks_own() -> None:
    """Some APIs call their page token `access_token` or the like: what the walk puts there is no login."""
    pages = {"by": "token", "take": "next_cursor"}
    source = described(params={"refresh_token": "{{ token }}"}, pages=pages)
    assert source.object("things").params["refresh_token"] == "{{ token }}"


def test_a_file_with_a_login(tmp_path: Path) -> None:
    """The same from a file, where the defaults of all objects count too."""
    file = tmp_path / "shop.yaml"
    file.write_text(
        f"source: shop\nconnection: c\ndefaults: {{headers: {{X-Api-Key: {SECRET}}}}}\n"
        "objects: {things: {path: /x, records: data, key: id, pages: {by: last_key, send: after}}}\n"
    )
    with pytest.raises(SourceError, match="`X-Api-Key` is a login") as caught:
        load_source(file)
    assert SECRET not in str(caught.value)
