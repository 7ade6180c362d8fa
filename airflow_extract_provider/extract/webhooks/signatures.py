"""Whether a webhook is genuine: its signature is made again from the bytes that came, and compared in constant time.

Whatever a stranger sends, it is an answer, never an exception. How old a signature is, is told only where it is right.
"""

from __future__ import annotations

import binascii
import enum
import hmac
import re
import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from airflow_extract_provider.extract.instants import reading
from airflow_extract_provider.extract.signing import Scheme, Template

__all__ = ["MOST_SIGNATURES", "Refusal", "Signed", "Verifier", "check_secret", "verify"]

MOST_SIGNATURES = 16
"""Signatures that one header may hold: an ed25519 one costs a tenth of a millisecond, and a stranger may send many."""

_BODY_ALONE = ("body",)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_UNITS = {"s": 1_000_000, "ms": 1_000}
_LONGEST_TIME = 40
"""Characters of a timestamp: Python takes long for numbers of many digits."""
_RFC3339 = reading("rfc3339", None)
_DECODED = re.compile(rb"%(?:3A|2F|3F|40|21|24|27|28|29|2A|2C|3B)", re.IGNORECASE)
_WRITTEN: Mapping[str, Callable[[bytes], bytes]] = {
    "hex": binascii.hexlify,
    "hex-upper": lambda raw: binascii.hexlify(raw).upper(),
    "base64": lambda raw: binascii.b2a_base64(raw, newline=False),
}
"""How each encoding is usually written."""
_PEPPER = randomness.token_bytes(32)
_BASIC = b"basic "
_LEAST_KEY = 16
"""Bytes of a `whsec_` secret: what is shorter is something else, such as a token that happens to be base64. The spec
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md) asks for more, 24."""
_KEY_SIZE = 32
"""Bytes of a public ed25519 key."""


class Refusal(enum.StrEnum):
    """Why a webhook is not taken for genuine."""

    MISSING = "missing"
    """A header that the scheme reads is not there, or empty."""
    MALFORMED = "malformed"
    """One is there, but not as the scheme says."""
    WRONG = "wrong"
    """No secret makes this signature."""
    OLD = "old"
    """The signature is right, but was made too long ago."""
    FUTURE = "future"
    """The signature is right, but its timestamp lies too far in the future."""


# Structs: a frozen dataclass takes four times as long to make.
class Signed(msgspec.Struct, frozen=True):
    """A request as it came. ``url`` is the public one, with its query, as the sender knows it. ``headers`` have names
    in lower case and values as they were sent, read as Latin-1; what was given twice is joined with ", ". ``at`` is
    when it came: seconds since 1970, by our clock."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    at: float


class _Claim(msgspec.Struct, frozen=True):
    """What the headers say: signatures as they are written, when it was signed (as written, and in microseconds)."""

    signatures: Sequence[bytes]
    timestamp: bytes
    instant: int
    id: bytes


def verify(scheme: Scheme, secrets: Sequence[bytes | str], signed: Signed) -> Refusal | None:
    """None: one of the secrets made the signature, and it is neither too old nor too far ahead. Without a secret, or
    with an empty one, nothing is genuine. It never raises."""
    value = _header(signed.headers, scheme.header)
    if isinstance(value, Refusal):
        return value
    if not scheme.signs:
        return _sent(scheme, secrets, value)
    claim = _claim(scheme, signed.headers, value)
    if isinstance(claim, Refusal):
        return claim
    content = _content(scheme, signed, claim)
    made = _made_by_private_key if scheme.algorithm == "ed25519" else _made_by_hash
    if not made(scheme, secrets, claim.signatures, content):
        return Refusal.WRONG
    return _in_time(scheme, claim.instant, signed.at) if scheme.timed else None


class Verifier:
    """:func:`verify` for one scheme, for who verifies very many. Where nothing but the body is signed, and nothing but
    the signature stands in its header, all else is worked out before."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme, self._header, self._prefix = scheme, scheme.header, scheme.prefix
        alone = (scheme.separator, scheme.timestamp, scheme.element, scheme.id) == (None, None, None, None)
        by_hash = scheme.signs and scheme.algorithm != "ed25519" and scheme.encoding == "hex"
        of_body = scheme.signs and scheme.parts.slots == _BODY_ALONE and not any(scheme.parts.texts)
        self._plain = alone and by_hash and of_body and not scheme.timed
        self._secrets: Sequence[bytes | str] = ()
        self._keys: Sequence[bytes] = ()

    def __call__(self, secrets: Sequence[bytes | str], signed: Signed) -> Refusal | None:
        """The same answer as that of :func:`verify`. ``secrets`` that change are another sequence: what the last one
        spells is known."""
        if self._plain:
            value = signed.headers.get(self._header, "")
            # What is found here is genuine; anything else is looked at in the usual way, which knows why it is not.
            if secrets is not self._secrets:
                self._secrets, self._keys = secrets, _keys(self._scheme, secrets)
            for key in self._keys:
                made = self._prefix + hmac.digest(key, signed.body, self._scheme.algorithm).hex()
                if value.isascii() and hmac.compare_digest(made, value):
                    return None
        return verify(self._scheme, secrets, signed)


def check_secret(scheme: Scheme, secret: bytes | str) -> None:
    """See that a secret can verify anything.

    Raises ValueError: it cannot; the message says why, and nothing of the secret.
    """
    hmac_or_not = ("whpk_", "whsec_") if scheme.algorithm == "ed25519" else ("whsec_", "whpk_")
    if scheme.key == "whsec" and _bytes(secret).strip().startswith(hmac_or_not[1].encode()):
        right, wrong = hmac_or_not
        raise ValueError(f"the secret begins with {wrong}, and such a scheme takes the one that begins with {right}")
    key = _key(scheme.key, scheme.algorithm, secret)
    if scheme.algorithm == "ed25519":
        _public_key(key)
    elif scheme.key == "whsec" and len(key) < _LEAST_KEY:
        raise ValueError(f"the secret spells {len(key)} bytes, and a vendor's has {_LEAST_KEY} at least: it is another")


# --- what the headers say


def _header(headers: Mapping[str, str], name: str) -> bytes | Refusal:
    # Those of HTTP alone: in a token's own bytes there may be what Python takes for a space.
    value = headers.get(name, "").strip(" \t")
    if not value:
        return Refusal.MISSING
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return Refusal.MALFORMED


def _claim(scheme: Scheme, headers: Mapping[str, str], value: bytes) -> _Claim | Refusal:
    found = _signatures(scheme, value)
    if isinstance(found, Refusal):
        return found
    signatures, timestamp = found
    if scheme.timestamp is not None:
        timestamp = _header(headers, scheme.timestamp)
    id = b"" if scheme.id is None else _header(headers, scheme.id)
    if isinstance(timestamp, Refusal):
        return timestamp
    if isinstance(id, Refusal):
        return id
    if id and _runs_over(scheme.parts, id):
        return Refusal.MALFORMED
    instant = _instant(scheme.unit, timestamp) if scheme.timed else 0
    return Refusal.MALFORMED if instant is None else _Claim(signatures, timestamp, instant, id)


def _runs_over(template: Template, id: bytes) -> bool:
    """Whether what parts the id from another slot of the template is in the id as well. Then they could be parted
    elsewhere: what was signed as a part of the body would pass for a timestamp, and the signature still be right. The
    Standard Webhooks spec says so: no part may hold the full stop that stands between them."""
    between = template.texts[1:-1]
    beside = {text for nth, text in enumerate(between) if "id" in template.slots[nth : nth + 2] and text}
    return any(text in id for text in beside)


def _signatures(scheme: Scheme, value: bytes) -> tuple[Sequence[bytes], bytes | Refusal] | Refusal:
    """The signatures, without what stands before each, and the timestamp that stands beside them."""
    prefix = scheme.prefix.encode()
    if scheme.separator is None:
        return ((value[len(prefix) :],), b"") if value.startswith(prefix) else Refusal.MALFORMED
    if scheme.separator != ", " and b", " in value:
        return Refusal.MALFORMED  # the header was given twice
    elements = value.split(scheme.separator.encode())
    found = [each[len(prefix) :] for each in elements if each.startswith(prefix)]
    if not 1 <= len(found) <= MOST_SIGNATURES:
        return Refusal.MALFORMED
    if scheme.element is None:
        return found, b""
    mark = scheme.element.encode()
    times = [each[len(mark) :] for each in elements if each.startswith(mark)]
    return (found, times[0]) if len(times) == 1 else Refusal.MALFORMED


def _instant(unit: str, text: bytes) -> int | None:
    """A timestamp in microseconds since 1970; None: it is none. Digits only: no sign, no fraction, no exponent."""
    if len(text) > _LONGEST_TIME:
        return None
    if unit == "rfc3339":
        found = _RFC3339(b'"%b"' % text)
        return None if found is None else (found - _EPOCH) // _MICROSECOND
    return int(text) * _UNITS[unit] if text.isdigit() else None


def _in_time(scheme: Scheme, instant: int, at: float) -> Refusal | None:
    age = round(at * 1_000_000) - instant
    if scheme.tolerance is not None and age > scheme.tolerance // _MICROSECOND:
        return Refusal.OLD
    if scheme.ahead is not None and -age > scheme.ahead // _MICROSECOND:
        return Refusal.FUTURE
    return None


# --- what was signed


def _content(scheme: Scheme, signed: Signed, claim: _Claim) -> bytes:
    template = scheme.parts
    if template.slots == _BODY_ALONE and not any(template.texts):
        return signed.body
    pieces = [template.texts[0]]
    for slot, text in zip(template.slots, template.texts[1:], strict=True):
        pieces.append(_filled(slot, scheme, signed, claim))
        pieces.append(text)
    return b"".join(pieces)


def _filled(slot: str, scheme: Scheme, signed: Signed, claim: _Claim) -> bytes:
    if slot == "body":
        return signed.body
    if slot == "timestamp":
        return claim.timestamp
    if slot == "id":
        return claim.id
    if slot == "method":
        return _bytes(signed.method)
    url = _bytes(signed.url)
    return url if scheme.url == "sent" else _DECODED.sub(lambda found: bytes.fromhex(found[0][1:].decode()), url)


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


# --- who made it


def _made_by_hash(scheme: Scheme, secrets: Sequence[bytes | str], signatures: Sequence[bytes], content: bytes) -> bool:
    """Each secret is tried with each signature, so that the time tells nothing of which one it was. What is compared is
    the text: base64 can be written in several ways, and only the usual one is taken."""
    found, written = False, _WRITTEN[scheme.encoding]
    for key in _keys(scheme, secrets):
        expected = written(hmac.digest(key, content, scheme.algorithm))
        for signature in signatures:
            found |= hmac.compare_digest(expected, signature)
    return found


def _made_by_private_key(
    scheme: Scheme, secrets: Sequence[bytes | str], signatures: Sequence[bytes], content: bytes
) -> bool:
    """Nothing here is secret."""
    raws = [raw for each in signatures if (raw := _decoded(scheme.encoding, each)) is not None]
    return any(_fits(key, raw, content) for key in _keys(scheme, secrets) for raw in raws)


def _fits(key: bytes, signature: bytes, content: bytes) -> bool:
    try:
        _public_key(key).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=32)
def _public_key(key: bytes) -> Ed25519PublicKey:
    if len(key) != _KEY_SIZE:
        raise ValueError(f"a public ed25519 key has {_KEY_SIZE} bytes, this has {len(key)}")
    return Ed25519PublicKey.from_public_bytes(key)


def _sent(scheme: Scheme, secrets: Sequence[bytes | str], value: bytes) -> Refusal | None:
    """Whether a token, or user and password, are one of the secrets."""
    if scheme.algorithm == "basic":
        given = value[len(_BASIC) :].lstrip(b" ") if value[: len(_BASIC)].lower() == _BASIC else None
    else:
        prefix = scheme.prefix.encode()
        given = value[len(prefix) :] if value.startswith(prefix) else None
    if given is None:
        return Refusal.MALFORMED
    found = False
    for key in _keys(scheme, secrets):
        expected = _WRITTEN["base64"](key) if scheme.algorithm == "basic" else key
        # Digests have one length: a comparison of the texts would tell the secret's.
        found |= hmac.compare_digest(_masked(expected), _masked(given))
    return None if found else Refusal.WRONG


def _masked(text: bytes) -> bytes:
    return hmac.digest(_PEPPER, text, "sha256")


# --- the secrets


def _keys(scheme: Scheme, secrets: Sequence[bytes | str]) -> Sequence[bytes]:
    """The keys of those secrets that can be read."""
    return _read_keys(scheme.key, scheme.algorithm, tuple(secrets))


@lru_cache(maxsize=256)
def _read_keys(kind: str, algorithm: str, secrets: tuple[bytes | str, ...]) -> Sequence[bytes]:
    found = []
    for each in secrets:
        try:
            found.append(_key(kind, algorithm, each))
        except ValueError:
            continue
    return tuple(found)


def _key(kind: str, algorithm: str, secret: bytes | str) -> bytes:
    """The key that a secret spells. Raises ValueError: none, or an empty one."""
    text = _bytes(secret)
    if not text.strip():
        raise ValueError("the secret is empty")
    if algorithm == "basic" and b":" not in text:
        raise ValueError("the secret is no user and password with a colon between them")
    if kind == "text":
        return text
    key = _spelled(kind, algorithm, text.strip())
    if not key:
        raise ValueError(f"the secret is no {'hex' if kind == 'hex' else 'base64'}, as `key: {kind}` says")
    return key


def _spelled(kind: str, algorithm: str, text: bytes) -> bytes:
    """What is no hex or base64 is empty. A public key never passes for a secret one: other prefixes are no base64."""
    if kind == "whsec":
        text = text.removeprefix(b"whpk_" if algorithm == "ed25519" else b"whsec_")
    try:
        if kind == "hex":
            return binascii.unhexlify(text)
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return b""


def _decoded(encoding: str, text: bytes) -> bytes | None:
    """What hex or base64 spells; None: it does not, or not in the usual way."""
    try:
        raw = binascii.a2b_base64(text) if encoding == "base64" else binascii.unhexlify(text)
    except ValueError:
        return None
    return raw if _WRITTEN[encoding](raw) == text else None
