"""What people may see of an answer: its first characters, without what must not be shown."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection
from html import unescape
from urllib.parse import quote, quote_plus, unquote

__all__ = ["SHORTEST", "as_read", "blotted", "excerpt", "forms_of"]

_MOST = 120
_LOOKED_AT = 4096
_LONGEST_SPELLING = 12
"""How many characters one character of a secret may take: two escapes of JSON, or three bytes in a URL."""
SHORTEST = 4
"""Characters below which nothing is taken for a secret: it would blot out half of every text."""
_BLOT = "***"
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_BACKSLASH = re.compile(r"\\([\"\\/])")
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]+")
_TELLING = re.compile(
    r"""(?ix) ( (?: token | secret | passw(?:or)?d | api[_-]?key | authorization | signature | session ) [\w-]{0,20}
        ["']? [ ]? [:=] [ ]? ["']? (?: (?:bearer|basic) [ ] )? ) [^\s"'&,;<>}]+"""
)
"""A name that tells of a secret, and what stands behind it."""


def excerpt(body: bytes, hidden: Collection[str]) -> str:
    """The first characters of a body in double quotes, on one line; empty when there are none, or no text.

    ``hidden`` are secrets: each is blotted out however it is spelled. So is what stands behind names such as `token` or
    `password`: a sign-in page may hold somebody else's.
    """
    # The end of what is looked at may hold a part of a secret, which would not be found.
    beyond = max(map(len, hidden), default=0) * _LONGEST_SPELLING
    looked_at = body[: _LOOKED_AT + beyond]
    if not looked_at or b"\0" in looked_at:  # UTF-16 and pictures: a secret would not be found in it
        return ""
    text = blotted(looked_at.decode("utf-8", "replace"), hidden)
    text = text[:_LOOKED_AT] if len(body) > _LOOKED_AT else text
    text = _TELLING.sub(rf"\1{_BLOT}", _GAPS.sub(" ", text)).strip()
    if text in ("", "{}", "[]", "null"):
        return ""
    return f'"{text[:_MOST]}…"' if len(text) > _MOST else f'"{text}"'


def blotted(text: str, hidden: Collection[str], blot: str = _BLOT) -> str:
    """A text in which each of these secrets is blotted out. Where it holds one that is spelled in an unusual way, the
    text comes back as it reads, without escapes."""
    found = sorted((secret for secret in hidden if len(secret) >= SHORTEST), key=len, reverse=True)
    for secret in found:
        text = text.replace(secret, blot)
    read = as_read(text)
    if any(secret in read for secret in found):
        for secret in found:
            read = read.replace(secret, blot)
        return read
    return text


def forms_of(*secrets: str) -> tuple[str, ...]:
    """Secrets in each of the forms in which they travel or are most often repeated: as they are, in a URL or a form, in
    JSON, in base64."""
    found = dict.fromkeys(each for each in secrets if each)
    for each in tuple(found):
        in_json = (json.dumps(each)[1:-1], json.dumps(each, ensure_ascii=False)[1:-1])
        in_urls = (quote(each, safe=""), quote(each), quote_plus(each))
        found |= dict.fromkeys((*in_urls, *in_json, in_json[0].replace("/", r"\/"), _packed(each)))
    return tuple(found)


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def as_read(text: str) -> str:
    """A text as it reads once the escapes of JSON, HTML and URLs are taken off."""
    text = _UNICODE.sub(lambda code: chr(int(code[1], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unquote(unescape(_BACKSLASH.sub(r"\1", text)))
