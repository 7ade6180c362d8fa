"""What an answer means that is no page: whether it is the API's own, and the error that it is."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

import msgspec

from airflow_extract_provider.extract.api.address import redirected
from airflow_extract_provider.extract.api.transport import Answer, Outgoing
from airflow_extract_provider.extract.errors import ExtractError, LoginError, RequestRefusedError, WrongAnswerError

__all__ = ["is_limited", "is_own", "status_error", "values_of", "with_words"]

_TEXT = re.compile(r'"([^"\\]+)"')


def status_error(answer: Answer, asked: Outgoing, said: str, hidden: Collection[str]) -> ExtractError:
    """The error for an answer whose status is none of success. ``said`` is the beginning of the API's own words, as
    people may see it; ``hidden`` are secrets that a redirect must not show."""
    status, quoted = answer.status, f": {said}" if said else "."
    if status in (401, 403):
        why = "does not accept the login" if status == 401 else "forbids this to the login"
        return LoginError(
            f"the API {why} (status {status}){quoted}", todo="Correct the connection, or the rights behind it."
        )
    if 300 <= status < 400:
        where = redirected(asked.url, asked.shown, answer.headers.get("location", ""), hidden)
        return RequestRefusedError(
            f"the API redirects {asked.shown} (status {status}){where}.",
            todo="Give the connection the address it redirects to; following it here could leak the login.",
        )
    return RequestRefusedError(
        f"the API answers {asked.shown} with status {status}{quoted}",
        todo="Check `path` and `params` of the object.",
    )


def with_words(exc: WrongAnswerError, answer: Answer, said: str) -> WrongAnswerError:
    """The error with the beginning of the body, or with its type where that is not JSON."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    shown = f" (Content-Type {kind[:60]})" if kind.isprintable() and "json" not in kind and kind else ""
    what = exc.what.rstrip(".") + shown
    return WrongAnswerError(f"{what}: {said}" if said else f"{what}.", kept=exc.kept, todo=exc.todo, **exc.place)


def is_own(answer: Answer) -> bool:
    """Whether a refusal can be the API's own word: JSON, as all that it says, or nothing at all."""
    try:
        msgspec.json.decode(answer.body.strip() or b"null", type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def is_limited(answer: Answer) -> bool:
    """Whether it is the answer to too many requests: 429, or a 403 as GitHub sends it ("Rate limits for the REST
    API")."""
    headers = answer.headers
    told = "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0"
    return answer.status == 429 or (answer.status == 403 and told)


def values_of(asked: Outgoing) -> list[str]:
    """What a request holds of values that could be a page token, wherever a template has put them."""
    parts = urlsplit(asked.url)
    told = [*parts.path.split("/"), *(value for _, value in parse_qsl(parts.query)), *asked.headers.values()]
    told += _TEXT.findall((asked.body or b"").decode("utf-8", "replace"))
    return [each for each in told if len(each) > 15]
