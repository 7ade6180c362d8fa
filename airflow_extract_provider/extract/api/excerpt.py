"""What people may see of an answer: its first characters, without what must not be shown."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection
from functools import lru_cache
from html.entities import codepoint2name
from urllib.parse import quote, quote_plus

__all__ = ["blotted", "excerpt", "forms_of"]

_MOST = 120
_LOOKED_AT = 4096
_LONGEST_SPELLING = 12
"""How many characters one character of a secret may take: two escapes of JSON, or three bytes in a URL."""
_SHORTEST = 4
"""Characters below which nothing is taken for a secret: it would blot out half of every text."""
_BLOT = "***"
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]+")
_TELLING = re.compile(
    r"""(?ix) ( (?: token | secret | passw(?:or)?d | api[_-]?key | authorization | signature | session ) [\w-]{0,20}
        ["']? [ ]? [:=] [ ]? ["']? (?: (?:bearer|basic) [ ] )? ) [^\s"'&,;<>}]+"""
)
"""A name that tells of a secret, and what stands behind it."""


def excerpt(body: bytes, hidden: Collection[str]) -> str:
    """The first characters of a body in double quotes, on one line; empty when there are none.

    ``hidden`` are secrets: each is blotted out however it is spelled. So is what stands behind names such as `token` or
    `password`: a sign-in page may hold somebody else's.
    """
    # The end of what is looked at may hold a part of a secret, which would not be found.
    beyond = max(map(len, hidden), default=0) * _LONGEST_SPELLING
    text = blotted(body[: _LOOKED_AT + beyond].decode("utf-8", "replace"), hidden)
    text = text[:_LOOKED_AT] if len(body) > _LOOKED_AT else text
    text = _TELLING.sub(rf"\1{_BLOT}", _GAPS.sub(" ", text)).strip()
    if text in ("", "{}", "[]", "null"):
        return ""
    return f'"{text[:_MOST]}…"' if len(text) > _MOST else f'"{text}"'


def blotted(text: str, hidden: Collection[str]) -> str:
    """A text in which each of these secrets is blotted out, however JSON, HTML or a URL spell it."""
    for secret in sorted(hidden, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = _spelled(secret).sub(_BLOT, text)
    return text


def forms_of(*secrets: str) -> tuple[str, ...]:
    """Secrets in each of the forms in which they travel or are most often repeated: as they are, in a URL or a form, in
    JSON, in base64."""
    found = dict.fromkeys(each for each in secrets if each)
    for each in tuple(found):
        in_json = (json.dumps(each)[1:-1], json.dumps(each, ensure_ascii=False)[1:-1])
        in_urls = (quote(each, safe=""), quote(each), quote_plus(each))
        packed = base64.b64encode(each.encode()).decode()
        found |= dict.fromkeys((*in_urls, *in_json, in_json[0].replace("/", r"\/"), packed))
    return tuple(found)


@lru_cache(maxsize=256)
def _spelled(secret: str) -> re.Pattern[str]:
    """Finds a text however it is escaped, each of its characters by itself."""
    return re.compile("".join(map(_spellings, secret)))


def _spellings(char: str) -> str:
    number, name = ord(char), codepoint2name.get(ord(char))
    units = char.encode("utf-16-be")
    ways = [
        re.escape(char),
        "".join(rf"(?i:\\u{units[at : at + 2].hex()})" for at in range(0, len(units), 2)),
        "".join(f"(?i:%{byte:02x})" for byte in char.encode()),
        f"&#0*{number};",
        f"(?i:&#x0*{number:x};)",
    ]
    ways += [rf"\\{re.escape(char)}"] if char in '"\\/' else []
    ways += [r"\+"] if char == " " else []
    ways += [f"&{name};"] if name else []
    return f"(?:{'|'.join(ways)})"
