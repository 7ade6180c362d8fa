"""What senders may do, what they are answered, and how many rows are stored then: a table of the tests, and of
docs/webhook-answers.md: ``python -m tests.webhooks.refusals --write`` writes it there.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tests.webhooks.listening import LIMIT, Talk, head, request, signature

__all__ = ["BEGIN", "CASES", "DOCUMENT", "END", "Case", "table"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "webhook-answers.md"
BEGIN = "<!-- Written by `python -m tests.webhooks.refusals --write`. -->"
END = "<!-- The end of that. -->"

_CUT = "Cut off"
_BODY = b'{"id": 1, "state": "paid"}'
_ADDRESSES = {
    "an address without a path": b"http://x",
    "an address with a port beyond all numbers": b"http://x:99999999/webhooks/shop/once",
    "an address with a port that is no number": b"http://x:y/",
    "an address that is no ASCII": b"/webhooks/shop/\xff",
}
_Send: TypeAlias = Callable[[Talk], object]
Server: TypeAlias = Literal["usual", "away", "full", "refusing"]
"""As it is; its store is away; as much as may be held in memory is; its store refuses the delivery."""


@dataclass(frozen=True)
class Case:
    """What is sent, the statuses that come back, how many rows are stored, and whether the connection is closed."""

    group: str
    what: str
    send: _Send
    answers: tuple[int, ...]
    stored: int = 0
    closed: bool = False
    server: Server = "usual"

    @property
    def name(self) -> str:
        """A test's name."""
        return f"{self.group}: {self.what}"


def _says(*parts: bytes) -> _Send:
    return lambda talk: talk.say(*parts)


def _chunked(body: bytes, size: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    return chunks + b"0\r\n" + trailers + b"\r\n"


def _in_chunks(endpoint: str, body: bytes, size: int = 7, trailers: bytes = b"") -> bytes:
    lines = signature(endpoint, body)
    return head(endpoint, *lines, b"transfer-encoding: chunked") + _chunked(body, size, trailers=trailers)


def _genuine() -> Iterator[Case]:
    group = "Genuine"
    yield Case(group, "a signed webhook", lambda talk: talk.say(request("once", _BODY)), (200,), 1)
    yield Case(group, "its body in chunks", lambda talk: talk.say(_in_chunks("once", _BODY)), (200,), 1)
    yield Case(
        group,
        "in chunks, with trailers: they are passed over",
        lambda talk: talk.say(_in_chunks("once", _BODY, trailers=b"x-kept: trailer\r\n")),
        (200,),
        1,
    )
    yield Case(
        group,
        "with `expect: 100-continue`",
        lambda talk: talk.say(request("once", _BODY, b"expect: 100-continue")),
        (200,),
        1,
    )
    yield Case(group, "by HTTP/1.0", lambda talk: talk.say(request("once", _BODY, version="1.0")), (200,), 1, True)
    yield Case(
        group,
        "with a query string",
        lambda talk: talk.say(request("once", _BODY, path="/webhooks/shop/once?from=x")),
        (200,),
        1,
    )
    yield Case(
        group,
        "a body that is no UTF-8: it is stored as it is",
        lambda talk: talk.say(request("once", b"\xff\xfe{")),
        (200,),
        1,
    )
    yield Case(group, "an empty body", lambda talk: talk.say(request("once", b"")), (200,), 1)
    yield Case(
        group, "the largest body that is allowed", lambda talk: talk.say(request("once", b"x" * LIMIT)), (200,), 1
    )
    yield Case(
        group,
        "the next one at once, before the answer",
        lambda talk: talk.say(request("once", _BODY) + request("once", _BODY + b" ")),
        (200, 200),
        2,
    )
    yield Case(
        group, "the sender closes his side of the connection behind it", _ends(request("once", _BODY)), (200,), 1, True
    )


def _ends(whole: bytes) -> _Send:
    def send(talk: Talk) -> None:
        talk.say(whole)
        talk.end()

    return send


def _repeated() -> Iterator[Case]:
    group = "Sent again"
    one = signature("once", _BODY)
    yield Case(
        group,
        "the same, to an endpoint with `dedupe`: it is there already",
        lambda talk: talk.say(request("once", _BODY, signed=one) * 2),
        (200, 200),
        1,
    )
    yield Case(
        group,
        "the same id with another body: another delivery",
        lambda talk: talk.say(
            request("once", _BODY, signed=one), request("once", b"{}", signed=[signature("once", b"{}")[0], one[1]])
        ),
        (200, 200),
        2,
    )
    yield Case(
        group,
        "the same, without `dedupe`: stored twice; to apply it twice is harmless",
        _says(request("each", _BODY, signed=signature("each", _BODY)) * 2),
        (200, 200),
        2,
    )
    yield Case(
        group,
        "to another endpoint, which has another secret",
        _says(request("each", _BODY, signed=signature("once", _BODY))),
        (401,),
    )


def _forged() -> Iterator[Case]:
    group = "Not verified"
    right = signature("once", _BODY)[0]
    wrong = right[:-1] + (b"0" if right[-1:] != b"0" else b"1")
    refused = {
        "no signature": [],
        "an empty signature": [b"x-hub-signature-256:"],
        "a wrong signature": [wrong],
        "a signature that is none": [b"x-hub-signature-256: sha256=\xff\xfe"],
        "the signature's header twice": [right, right],
        "the signature of another body": signature("once", b"{}"),
    }
    for what, lines in refused.items():
        yield Case(group, what, _says(request("once", _BODY, signed=lines)), (401,))
    yield Case(
        group,
        "signed too long ago",
        lambda talk: talk.say(request("timed", _BODY, signed=signature("timed", _BODY, at=time.time() - 400))),
        (401,),
    )
    yield Case(
        group,
        "signed in the future",
        lambda talk: talk.say(request("timed", _BODY, signed=signature("timed", _BODY, at=time.time() + 400))),
        (401,),
    )
    yield Case(group, "a wrong token", _says(request("token", _BODY, signed=[b"x-gitlab-token: x"])), (401,))
    yield Case(group, "a wrong password", _says(request("login", _BODY, signed=[b"authorization: Basic eDp5"])), (401,))


def _misdirected() -> Iterator[Case]:
    group = "Not for an endpoint"
    for what, path in (
        ("an unknown endpoint", "/webhooks/shop/none"),
        ("an unknown source", "/webhooks/none/once"),
        ("a slash behind the path", "/webhooks/shop/once/"),
        ("another path", "/webhooks"),
    ):
        yield Case(group, what, _says(request("once", _BODY, path=path)), (404,), closed=True)
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        yield Case(group, f"the method {method}", _says(request("once", _BODY, method=method)), (405,), closed=True)
    yield Case(group, "the method HEAD", _says(head("once", method="HEAD")), (405,), closed=True)


def _unreadable() -> Iterator[Case]:
    group = "Bodies that are not read"
    signed = signature("once", _BODY)
    packed = gzip.compress(_BODY)
    yield Case(
        group,
        "larger than `max_bytes`, as `content-length` says: before a byte of it is read",
        _says(head("once", b"content-length: %d" % (LIMIT + 1))),
        (413,),
        closed=True,
    )
    yield Case(
        group,
        "larger than `max_bytes`, in chunks: at the first byte too many",
        lambda talk: talk.say(_in_chunks("once", b"x" * (LIMIT + 1), 50_000)),
        (413,),
        closed=True,
    )
    yield Case(
        group,
        "compressed, be it signed",
        lambda talk: talk.say(request("once", packed, b"content-encoding: gzip")),
        (415,),
        closed=True,
    )
    yield Case(
        group,
        "another `transfer-encoding` than chunked",
        _says(head("once", *signed, b"transfer-encoding: gzip, chunked") + _chunked(packed, 7)),
        (501,),
        closed=True,
    )


def _ambiguous() -> Iterator[Case]:
    group = "No clear HTTP"
    signed = signature("once", _BODY)
    length = b"content-length: %d" % len(_BODY)
    chunked = b"transfer-encoding: chunked"
    lines = {
        "both `content-length` and `transfer-encoding`": [length, chunked],
        "both, the other way round": [chunked, length],
        "`content-length` twice": [length, b"content-length: 1"],
        "a negative `content-length`": [b"content-length: -1"],
        "a `content-length` that is no number": [b"content-length: 0x10"],
        "a `content-length` beyond all numbers": [b"content-length: " + b"9" * 40],
        "a space before a colon": [b"x-name : value", length],
        "a header on two lines": [b"x-name: one\r\n two", length],
        "a NUL in a header": [b"x-name: \x00", length],
        "a WebSocket": [b"connection: upgrade", b"upgrade: websocket", length],
        "an upgrade to HTTP/2": [b"connection: upgrade, http2-settings", b"upgrade: h2c", length],
    }
    for what, more in lines.items():
        yield Case(group, what, _says(head("once", *signed, *more) + _BODY), (400,), closed=True)
    yield Case(group, "a chunk without a size", _says(head("once", *signed, chunked) + b"x\r\n"), (400,), closed=True)
    yield Case(group, "CONNECT", _says(b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n"), (400,), closed=True)
    yield Case(group, "HTTP/2", _says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (400,), closed=True)
    for what, address in _ADDRESSES.items():
        line = b"POST " + address + b" HTTP/1.1\r\nhost: x\r\n\r\n"
        yield Case(group, what, _says(line), (400,), closed=True)
    yield Case(group, "TLS", _says(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), (400,), closed=True)
    yield Case(
        group,
        "nonsense behind a webhook that waits for its answer: both are dropped, it is sent again",
        _says(request("once", _BODY, signed=signed) + b"nonsense\r\n\r\n"),
        (),
        closed=True,
    )
    yield Case(
        group,
        "an address that is none behind a webhook that waits for its answer: the same",
        _says(request("once", _BODY, signed=signed) + b"POST http://x:99999999/ HTTP/1.1\r\nhost: x\r\n\r\n"),
        (),
        closed=True,
    )


def _slow() -> Iterator[Case]:
    group = "Slow"
    length = b"content-length: %d" % len(_BODY)
    yield Case(group, "a connection that says nothing", _says(), (), closed=True)
    yield Case(group, "a head that does not end", _says(head("once")[:-2]), (408,), closed=True)
    yield Case(group, "a head that comes byte by byte", _trickles(head("once")), (408,), closed=True)
    yield Case(group, "nothing but empty lines", _trickles(b"\r\n" * 50), (408,), closed=True)
    yield Case(group, "a body that does not end", _says(head("once", length) + _BODY[:-1]), (408,), closed=True)
    yield Case(
        group,
        "a body that comes byte by byte",
        _trickles(b"x" * 50, first=head("once", b"content-length: 1000")),
        (408,),
        closed=True,
    )


def _trickles(slowly: bytes, first: bytes = b"") -> _Send:
    def send(talk: Talk) -> None:
        talk.say(first)
        for at in range(len(slowly)):
            if talk.is_closed(0.05):
                return
            talk.say(slowly[at : at + 1])

    return send


def _floods() -> Iterator[Case]:
    group = "Floods"
    chunked = head("once", b"transfer-encoding: chunked")
    begun = head("once")[:-2]
    long = {
        "a header without end": (begun + b"x-name: ", b"x" * 60_000, 431),
        "headers without end": (begun, b"x-name: value\r\n" * 4_000, 431),
        "headers of no length": (begun, b"a:\r\n" * 15_000, 431),
        "a path without end": (b"POST /", b"x" * 60_000, 431),
        "empty lines without end": (b"", b"\r\n" * 30_000, 431),
        "the extension of a chunk without end": (chunked + b"1;", b"x" * 60_000, 400),
        "chunks with extensions without end": (chunked, (b"1;" + b"x" * 500 + b"\r\nx\r\n") * 100, 400),
        "chunks of one byte": (chunked, b"1\r\nx\r\n" * 10_000, 400),
        "a trailer without end": (chunked + b"0\r\nx-name: ", b"x" * 60_000, 400),
        "trailers without end": (chunked + b"0\r\n", b"x-name: value\r\n" * 4_000, 400),
    }
    for what, (first, part, status) in long.items():
        yield Case(group, what, _flood(first, part), (status,), closed=True)
    yield Case(group, "101 headers", _says(head("once", *[b"x-name: value"] * 100)), (431,), closed=True)
    yield Case(
        group,
        "forty at once, before the first answer: that one is stored, all are sent again",
        _says(request("once", _BODY) * 40),
        (),
        1,
        True,
    )


def _flood(first: bytes, part: bytes) -> _Send:
    def send(talk: Talk) -> None:
        talk.say(first)
        talk.flood(part, 2_000_000)

    return send


def _cut() -> Iterator[Case]:
    group = _CUT
    whole = request("token", _BODY)
    yield Case(group, "in the head", _hangs_up(whole[:60]), ())
    yield Case(group, "in the body, under a token that signs nothing", _hangs_up(whole[:-10]), ())
    yield Case(group, "in chunks, before the last one", _hangs_up(_in_chunks("token", _BODY)[:-5]), ())


def _hangs_up(part: bytes) -> _Send:
    def send(talk: Talk) -> None:
        talk.say(part)
        talk.hang_up()

    return send


def _away() -> Iterator[Case]:
    group = "Nothing wrong with the webhook"
    yield Case(group, "the store is away", _says(request("once", _BODY)), (503,), server="away")
    yield Case(group, "the store refuses it", _says(request("once", _BODY)), (500,), closed=True, server="refusing")
    yield Case(
        group, "as much is held in memory as may be", _says(request("once", _BODY)), (503,), closed=True, server="full"
    )


CASES = (
    *_genuine(),
    *_repeated(),
    *_forged(),
    *_misdirected(),
    *_unreadable(),
    *_ambiguous(),
    *_slow(),
    *_floods(),
    *_cut(),
    *_away(),
)


def table() -> str:
    """The table as it stands in the document."""
    lines = ["| what is sent | answer | rows | connection |", "|---|---|---|---|"]
    group = ""
    for case in CASES:
        if case.group != group:
            group = case.group
            lines.append(f"| **{group}** | | | |")
        answers = ", ".join(map(str, case.answers)) or "none"
        after = "lost" if case.group == _CUT else "closed" if case.closed else "kept"
        lines.append(f"| {case.what} | {answers} | {case.stored} | {after} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the document."""
    if "--write" in sys.argv[1:]:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
