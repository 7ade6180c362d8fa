"""The first characters of an answer, for people: on one line, short, and without what must not be shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.excerpt import excerpt, forms_of

SPELLED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in a URL": lambda secret: quote(secret, safe=""),
    "in a form": quote_plus,
    "in HTML": escape,
    "in JSON": lambda secret: json.dumps(secret)[1:-1].replace("/", r"\/"),
}
SECRETS = st.text("abcXYZ019-_.~+/=&<", min_size=4, max_size=40)


@given(
    secret=SECRETS,
    spelled=st.sampled_from(sorted(SPELLED)),
    before=st.integers(0, 4200),
    gaps=st.sampled_from(["x", " ", "\n", "é"]),
)
@example(secret="s3cret/+=", spelled="in JSON", before=4090, gaps=" ")
@example(secret="s3cret-s3cret", spelled="as it is", before=4093, gaps="\n")
@example(secret="s3cret-s3cret", spelled="as it is", before=110, gaps="x")
def test_no_secret_is_shown(secret: str, spelled: str, before: int, gaps: str) -> None:
    """However it is spelled and wherever it stands: not a part of it that would be worth having."""
    body = gaps * before + SPELLED[spelled](secret) + " and more of it" * 20
    shown = excerpt(body.encode(), forms_of(secret))
    assert len(shown) <= 125
    assert SPELLED[spelled](secret) not in shown
    half = SPELLED[spelled](secret)[: max(4, len(secret) // 2)]
    assert half not in shown or half in gaps * 4 or half in " and more of it *** and more"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", ""),
        (b" \r\n\t ", ""),
        (b"{}", ""),
        (b"<!DOCTYPE html>\n<html>\n  <title>Sign in</title>", '"<!DOCTYPE html> <html> <title>Sign in</title>"'),
        ("Zugriff verweigert: größer".encode(), '"Zugriff verweigert: größer"'),
        (b"caf\xe9 \x01\x1b[31mred", '"caf\ufffd [31mred"'),
        (b"a" * 130, '"' + "a" * 120 + '…"'),
        (b'{"access_token": "abc.def", "n": 1}', '"{"access_token": "***", "n": 1}"'),
        (b"password=hunter2&user=me", '"password=***&user=me"'),
        (b"Authorization: Bearer abc.def.ghi here", '"Authorization: Bearer *** here"'),
        (b'<input name="csrf_token" value="v"/>', '"<input name="csrf_token" value="v"/>"'),
        (b"The token has expired.", '"The token has expired."'),
        ("secret: abc".encode("utf-16"), ""),
    ],
)
def test_what_is_shown(body: bytes, shown: str) -> None:
    """Words stay; what stands behind a telling name does not, whosever it is."""
    assert excerpt(body, []) == shown


def test_short_secrets_blot_nothing_out() -> None:
    """A login of three characters would take half of every text away."""
    assert excerpt(b"an example of a plain text", ["a", "ple"]) == '"an example of a plain text"'


def test_long_words_take_no_time() -> None:
    """Whatever a server sends, its first characters are found at once; the test's own timeout is the bound."""
    for body in (b"token" * 200_000, b"a" * 1_000_000, b"secret-" * 100_000 + b"=", b"token_" + b"_" * 10_000):
        assert excerpt(body, forms_of("s3cret" * 10)).startswith('"')
