"""What people may see of an answer: its first characters, without what must not be shown."""

from __future__ import annotations

import re
from collections.abc import Collection
from html import escape
from urllib.parse import quote, quote_plus

__all__ = ["excerpt", "forms"]

_MOST = 120
_LOOKED_AT = 4096
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]+")
_TELLING = re.compile(
    r"""(?ix) ( [\w-]* (?: token | secret | passw(?:or)?d | api[_-]?key | authorization | signature | session ) [\w-]*
        ["']? \s* [:=] \s* ["']? (?: (?:bearer|basic) \s+ )? ) [^\s"'&,;<>}]+"""
)
"""A name that tells of a secret, and what stands behind it."""


def excerpt(body: bytes, secrets: Collection[str]) -> str:
    """The first characters of a body in double quotes, on one line; empty when there are none.

    Each of ``secrets`` is blotted out in every form in which APIs repeat it, and so is what stands behind names such as
    `token` or `password`: a sign-in page may hold somebody else's.
    """
    # The end of what is looked at may hold a part of a secret, which would not be found.
    longest = max((len(form) for secret in secrets for form in forms(secret)), default=0)
    text = body[: _LOOKED_AT + 4 * longest].decode("utf-8", "replace")
    for form in sorted((form for secret in secrets for form in forms(secret)), key=len, reverse=True):
        text = text.replace(form, "***")
    text = text[:_LOOKED_AT] if len(body) > _LOOKED_AT else text
    text = _TELLING.sub(r"\1***", _GAPS.sub(" ", text)).strip()
    if text in ("", "{}", "[]", "null"):
        return ""
    return f'"{text[:_MOST]}…"' if len(text) > _MOST else f'"{text}"'


def forms(secret: str) -> set[str]:
    """How a secret may stand in a text: as it is, in a URL, in HTML, in JSON. Very short ones are no secrets: they
    would blot out half of every text."""
    if len(secret) < 4:
        return set()
    return {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        quote(secret),
        escape(secret),
        secret.replace("/", r"\/"),
    }
