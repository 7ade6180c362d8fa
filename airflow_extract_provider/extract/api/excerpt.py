"""What people may see of an answer: its first characters, without what must not be shown."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from html import escape
from urllib.parse import quote, quote_plus

__all__ = ["excerpt", "forms_of"]

_MOST = 120
_LOOKED_AT = 4096
_SHORTEST = 4
"""Characters below which nothing is taken for a secret: it would blot out half of every text."""
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]+")
_TELLING = re.compile(
    r"""(?ix) ( (?: token | secret | passw(?:or)?d | api[_-]?key | authorization | signature | session ) [\w-]{0,20}
        ["']? [ ]? [:=] [ ]? ["']? (?: (?:bearer|basic) [ ] )? ) [^\s"'&,;<>}]+"""
)
"""A name that tells of a secret, and what stands behind it."""


def excerpt(body: bytes, hidden: Collection[str]) -> str:
    """The first characters of a body in double quotes, on one line; empty when there are none.

    ``hidden`` are secrets in the forms of :func:`forms_of`: they are blotted out. So is what stands behind names such as
    `token` or `password`: a sign-in page may hold somebody else's.
    """
    # The end of what is looked at may hold a part of a secret, which would not be found.
    longest = max(map(len, hidden), default=0)
    text = body[: _LOOKED_AT + 4 * longest].decode("utf-8", "replace")
    for form in sorted(hidden, key=len, reverse=True):
        if len(form) >= _SHORTEST:
            text = text.replace(form, "***")
    text = text[:_LOOKED_AT] if len(body) > _LOOKED_AT else text
    text = _TELLING.sub(r"\1***", _GAPS.sub(" ", text)).strip()
    if text in ("", "{}", "[]", "null"):
        return ""
    return f'"{text[:_MOST]}…"' if len(text) > _MOST else f'"{text}"'


def forms_of(*secrets: str) -> tuple[str, ...]:
    """Secrets in each of the forms in which they may turn up: as they are, in a URL or form, in HTML, in JSON."""
    found = dict.fromkeys(each for each in secrets if each)
    for each in tuple(found):
        in_json = json.dumps(each)[1:-1]
        spelled = (
            quote(each, safe=""),
            quote(each),
            quote_plus(each),
            escape(each),
            in_json,
            in_json.replace("/", r"\/"),
        )
        found |= dict.fromkeys(spelled)
    return tuple(found)
