"""Where requests go: links are followed on the API's own host only, and hold no login."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any
from urllib.parse import SplitResult, unquote, unquote_plus, urljoin, urlsplit, urlunsplit

import msgspec

from airflow_extract_provider.extract.api.excerpt import SHORTEST, as_read, blotted
from airflow_extract_provider.extract.errors import RequestRefusedError
from airflow_extract_provider.extract.page import FieldPath, Page

__all__ = ["LEFT_OUT", "host_of", "linked", "login_in_position", "redirected", "without_secrets"]

_UNMISTAKABLE = 12
"""Characters from which on a secret is taken for one wherever it stands."""
_TELLING = re.compile(r"(?i)key|token|secret|pass|auth|sig|login|user|account|client")
LEFT_OUT = "***login***"
"""Stands in a position for what was the login."""
_PORTS = {"http": 80, "https": 443}


def linked(url: str, link: str, unsent: Collection[str], secrets: Collection[str]) -> str:
    """The URL of a link, relative to ``url``, on the API's own host: elsewhere the login would leak.

    Parameters named in ``unsent`` are left out: the login sends them itself, and some APIs repeat them in links. A link
    by http of an API that is reached by https is followed by https: such an API does not know what stands before it.

    Raises RequestRefusedError: it leads to another scheme, host or port, or nowhere; or it has held the login.
    """
    if LEFT_OUT in link:
        raise login_in_position()
    own = urlsplit(url)
    try:
        target = urlsplit(urljoin(url, link))
        origin = _origin(target)
    except ValueError:
        raise RequestRefusedError(
            "the link to the next page is no URL.", todo="Check where `pages` finds the link."
        ) from None
    if origin != _origin(own) and (own.scheme, origin) != ("https", ("http", *_plain(own))):
        raise RequestRefusedError(
            f"the link to the next page leads to {host_of(target, secrets)}; the login is not sent there.",
            todo="If that is the API's right address, give it to the connection.",
        )
    query = _query_without(target.query, lambda name, _: name in unsent)
    # Of the link only path and query are taken, so that no other reading of its host can matter.
    return urlunsplit((own.scheme, own.netloc, target.path or "/", query, ""))


def host_of(target: SplitResult, secrets: Collection[str]) -> str:
    """A URL's scheme and host for people, unless a secret is in it."""
    shown = f"{target.scheme}://{target.netloc.rpartition('@')[2]}"
    return "another host" if any(secret in shown for secret in secrets) else shown


def redirected(url: str, shown: str, location: str, secrets: Collection[str]) -> str:
    """Where a redirect of ``url`` leads, in words. A path is told only where it is the object's own, ``shown``: others
    may hold one-time tokens."""
    try:
        target = urlsplit(location)
    except ValueError:
        return ""
    host = f" of {host_of(target, secrets)}" if target.netloc else ""
    if target.path.rstrip("/") != urlsplit(url).path.rstrip("/"):
        return f" to another path{host}"
    slash = "/" if target.path.endswith("/") and not shown.endswith("/") else ""
    return f" to {shown}{slash}{host}"


def without_secrets(page: Page, secrets: Collection[str], records: FieldPath) -> Page:
    """A page without the login in its links: they become part of the position, which is stored and shown.

    A parameter whose value holds a secret is left out of the link: what signs the request is sent anyway. ``records``
    is the path to the records, which stay as they are.
    """
    found = {secret for secret in secrets if len(secret) >= SHORTEST}
    # What lies beside the records is not read if it need not be: they are the larger part.
    kept = records[0] if len(records) == 1 else None
    told = {name: raw for name, raw in page.envelope.items() if name != kept and _holds(bytes(raw), found)}
    headers = {name: text for name, text in page.headers.items() if _holds(text.encode("utf-8", "replace"), found)}
    if not told and not headers:
        return page
    return replace(
        page,
        envelope={**page.envelope, **{name: _cleaned(raw, found) for name, raw in told.items()}},
        headers={**page.headers, **{name: _header_without(text, found) for name, text in headers.items()}},
    )


def _holds(text: bytes, secrets: Collection[str]) -> bool:
    """Whether a secret is in a text, however it is escaped: each API has its own way."""
    if any(secret.encode() in text for secret in secrets):
        return True
    read = as_read(text.decode("utf-8", "replace")) if b"\\" in text or b"%" in text or b"&" in text else ""
    return any(secret in read for secret in secrets)


def _header_without(text: str, secrets: Collection[str]) -> str:
    """A header without secrets in its links: in angle brackets, as in `Link` (RFC 8288, section 3), or bare."""
    if "<" not in text:
        return _link_without(text, secrets)
    return re.sub("<([^>]*)>", lambda link: f"<{_link_without(link[1], secrets)}>", text)


def _cleaned(raw: msgspec.Raw, secrets: Collection[str]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(_walked(msgspec.json.decode(raw), secrets)))


def _walked(value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, str):
        return _link_without(value, secrets)
    if isinstance(value, list):
        return [_walked(each, secrets) for each in value]
    if isinstance(value, dict):
        return {name: _walked(each, secrets) for name, each in value.items()}
    return value


def _link_without(text: str, secrets: Collection[str]) -> str:
    """A link without the login: the parameters that hold a secret are left out, and user name and fragment, which are
    not sent. What is left of a secret is marked: who would send that raises an error."""
    if not any(secret in each for secret in secrets for each in (text, unquote_plus(text))):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return _marked(text, secrets)
    query = _query_without(parts.query, lambda name, value: _is_login(name, value, secrets))
    link = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
    return _marked(link, secrets)


def _is_login(name: str, value: str, secrets: Collection[str]) -> bool:
    """Whether a parameter of a link is the login. A short one may be a word that means something else, too: a filter
    that is left out would lose records."""
    spelled = (value, unquote(value), unquote_plus(value))
    if any(secret in each for secret in secrets if len(secret) >= _UNMISTAKABLE for each in spelled):
        return True
    return _TELLING.search(name) is not None and any(each in secrets for each in spelled)


def _marked(text: str, secrets: Collection[str]) -> str:
    return blotted(text, [secret for secret in secrets if len(secret) >= _UNMISTAKABLE], LEFT_OUT)


def login_in_position() -> RequestRefusedError:
    """The error for a link or page token that holds the login: it would be stored and shown."""
    return RequestRefusedError(
        "the link or token to the next page holds the login itself; it is neither stored nor sent.",
        todo="Log in by a header, if the API has one; else report it to its vendor.",
    )


def _query_without(query: str, unwanted: Callable[[str, str], bool]) -> str:
    parts = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if not unwanted(unquote_plus(name), value):
            parts.append(part)
    return "&".join(parts)


def _plain(url: SplitResult) -> tuple[str | None, int]:
    """Host and port of the same server by http: the same port, or each the usual one."""
    port = url.port or 443
    return url.hostname, 80 if port == 443 else port


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, which tell whether two URLs lead to the same server. Raises ValueError: an odd port."""
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)
