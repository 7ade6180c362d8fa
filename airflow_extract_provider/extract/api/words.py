"""What of an answer is said to people: an error, a web page. All else may be records."""

from __future__ import annotations

import re

import msgspec

from airflow_extract_provider.extract.api.cut import told_error

__all__ = ["is_page", "words"]

_WEB_PAGE = re.compile(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b")


def words(status: int, body: bytes) -> bytes:
    """The part of an answer that is the API's own words; empty where there is none.

    Of a JSON object with an error in it that is the error alone: records may stand beside it. With a status of success
    nothing else but a web page counts.
    """
    if name := _error_in(body):
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])[name]
        return b'{"%s": %s}' % (name.encode(), bytes(found))
    return body if not 200 <= status < 300 or _WEB_PAGE.match(body) else b""


def is_page(body: bytes) -> bool:
    """Whether a body is whole JSON and tells of no error: asked again, the API would say the same."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return _error_in(body) is None


def _error_in(body: bytes) -> str | None:
    try:
        return told_error(msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    except msgspec.DecodeError:
        return None
