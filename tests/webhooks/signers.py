"""How vendors sign, told by others than us: by their own libraries, or by the steps that their pages show, taken with
another implementation of HMAC and ed25519 than ours (`cryptography`)."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeAlias, TypeVar

import msgspec
import pytest
import requests.auth
import standardwebhooks
import stripe
import svix.webhooks
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hmac import HMAC
from hubspot.utils.signature import Signature
from slack_sdk.signature import Clock, SignatureVerifier

from airflow_extract_provider.extract.signing import SCHEMES, Scheme
from airflow_extract_provider.extract.webhooks import signatures
from airflow_extract_provider.extract.webhooks.signatures import Refusal, Signed, Verifier

__all__ = [
    "REQUEST",
    "SIGNERS",
    "Request",
    "Signer",
    "every",
    "genuine",
    "hmac_of",
    "refused",
    "standard_key",
    "verify",
]

Headers: TypeAlias = dict[str, str]
_PRIVATES: dict[str, Ed25519PrivateKey] = {}
"""The private keys by the public ones, as these are written."""


_Changed = TypeVar("_Changed", bound="Signed | Request")


def replace(of: _Changed, **changes: Any) -> _Changed:
    """The same with changes."""
    if isinstance(of, Signed):
        return msgspec.structs.replace(of, **changes)
    return dataclasses.replace(of, **changes)


def verify(scheme: Scheme, secrets: Sequence[bytes | str], signed: Signed) -> Refusal | None:
    """What is said of a request; whoever verifies very many says the same."""
    found = signatures.verify(scheme, secrets, signed)
    assert Verifier(scheme)(secrets, signed) is found
    return found


@dataclass(frozen=True)
class Request:
    """What is to be signed, at a second since 1970."""

    body: str = '{"id": "evt_1", "größe": 1.50}'
    at: int = 1_700_000_000
    id: str = "msg_p5jXN8AQM9LWM0D4loKWxJek"
    method: str = "POST"
    url: str = "https://hooks.example.com/webhooks/crm/events?tenant=7"

    def signed(self, headers: Mapping[str, str], at: float | None = None) -> Signed:
        """As it reaches us, at the same second if nothing else is said."""
        seconds = float(self.at) if at is None else at
        return Signed(self.method, self.url, headers, self.body.encode(), seconds)


@dataclass(frozen=True)
class Signer:
    """A vendor: ``sign`` makes the headers; ``takes`` asks the vendor's own library, where there is one, whether they
    are genuine now."""

    name: str
    secret: str
    other: str
    sign: Callable[[str, Request], Headers]
    takes: Callable[[str, Request, Headers], object] | None = None

    @property
    def scheme(self) -> Scheme:
        """The one under test."""
        return SCHEMES[self.name]

    def accepts(self, secret: str, request: Request, headers: Headers) -> bool:
        """What the library says; some raise, some say False."""
        assert self.takes is not None
        try:
            return self.takes(secret, request, headers) is not False
        except Exception:
            return False


def hmac_of(secret: str | bytes, content: str | bytes, kind: hashes.HashAlgorithm | None = None) -> bytes:
    """HMAC by another library than ours."""
    made = HMAC(secret if isinstance(secret, bytes) else secret.encode(), kind or hashes.SHA256())
    made.update(content if isinstance(content, bytes) else content.encode())
    return made.finalize()


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def standard_key(seed: int) -> str:
    """A secret of 24 bytes, the fewest that the standard allows."""
    return "whsec_" + _base64(bytes((seed + each) % 256 for each in range(24)))


def public_key(seed: int) -> str:
    """A public key, whose private one signs here too."""
    private = Ed25519PrivateKey.from_private_bytes(bytes((seed + each) % 256 for each in range(32)))
    shown = "whpk_" + _base64(private.public_key().public_bytes_raw())
    _PRIVATES[shown] = private
    return shown


# --- by their own libraries


def _stripe(secret: str, request: Request) -> Headers:
    return {
        "stripe-signature": stripe.WebhookSignature.generate_signature_header(request.body, secret, request.at),
    }


def _stripe_takes(secret: str, request: Request, headers: Headers) -> object:
    return stripe.WebhookSignature.verify_header(request.body.encode(), headers["stripe-signature"], secret, 300)


def _slack(secret: str, request: Request) -> Headers:
    made = SignatureVerifier(secret).generate_signature(timestamp=str(request.at), body=request.body)
    assert made is not None
    return {"x-slack-request-timestamp": str(request.at), "x-slack-signature": made}


def _slack_takes(secret: str, request: Request, headers: Headers) -> object:
    return SignatureVerifier(secret, Clock()).is_valid_request(request.body, headers)


def _hubspot(secret: str, request: Request) -> Headers:
    at = str(request.at * 1000)
    made = Signature.get_signature(secret, request.body, "v3", request.url, request.method, at)
    return {"x-hubspot-request-timestamp": at, "x-hubspot-signature-v3": made}


def _hubspot_takes(secret: str, request: Request, headers: Headers) -> object:
    return Signature.is_valid(
        headers["x-hubspot-signature-v3"],
        secret,
        request.body,
        request.url,
        request.method,
        "v3",
        headers["x-hubspot-request-timestamp"],
    )


def _standard(secret: str, request: Request, name: str = "webhook") -> Headers:
    at = datetime.fromtimestamp(request.at, timezone.utc)
    library = svix.webhooks.Webhook if name == "svix" else standardwebhooks.Webhook
    made = library(secret).sign(request.id, at, request.body)
    return {f"{name}-id": request.id, f"{name}-timestamp": str(request.at), f"{name}-signature": made}


def _standard_takes(secret: str, request: Request, headers: Headers) -> object:
    return standardwebhooks.Webhook(secret).verify(request.body.encode(), headers, json_parse=False)


def _svix(secret: str, request: Request) -> Headers:
    return _standard(secret, request, "svix")


def _svix_takes(secret: str, request: Request, headers: Headers) -> object:
    svix.webhooks.Webhook(secret).verify(request.body.encode(), headers)
    return True


# --- by the steps that their pages show


def _asymmetric(secret: str, request: Request) -> Headers:
    made = _PRIVATES[secret].sign(f"{request.id}.{request.at}.{request.body}".encode())
    return {
        "webhook-id": request.id,
        "webhook-timestamp": str(request.at),
        "webhook-signature": "v1a," + _base64(made),
    }


def _github(secret: str, request: Request) -> Headers:
    return {"x-hub-signature-256": "sha256=" + hmac_of(secret, request.body).hex()}


def _shopify(secret: str, request: Request) -> Headers:
    return {"x-shopify-hmac-sha256": _base64(hmac_of(secret, request.body))}


def _zendesk(secret: str, request: Request) -> Headers:
    at = datetime.fromtimestamp(request.at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "x-zendesk-webhook-signature": _base64(hmac_of(secret, at + request.body)),
        "x-zendesk-webhook-signature-timestamp": at,
    }


def _token(secret: str, _: Request) -> Headers:
    return {"x-gitlab-token": secret}


def _basic(secret: str, _: Request) -> Headers:
    return {"authorization": requests.auth._basic_auth_str(*secret.encode().split(b":", 1))}


SIGNERS: Mapping[str, Signer] = {
    each.name: each
    for each in (
        Signer("stripe", "whsec_1a2b3c", "whsec_4d5e6f", _stripe, _stripe_takes),
        Signer("slack", "8f742231b10e8888abcd99yyyzzz85a5", "0f742231b10e8888abcd99yyyzzz85a5", _slack, _slack_takes),
        Signer("hubspot", "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy", "another-client-secret", _hubspot, _hubspot_takes),
        Signer("standard_webhooks", standard_key(1), standard_key(2), _standard, _standard_takes),
        Signer("svix", standard_key(3), standard_key(4), _svix, _svix_takes),
        Signer("gitlab", standard_key(5), standard_key(6), _standard, _standard_takes),
        Signer("standard_webhooks_ed25519", public_key(0), public_key(7), _asymmetric),
        Signer("github", "It's a Secret to Everybody", "hunter2", _github),
        Signer("shopify", "shpss_1a2b3c", "shpss_4d5e6f", _shopify),
        Signer("zendesk", "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ==", "HRkRd4BeOAoUkfZr-mhauA==", _zendesk),
        Signer("gitlab_token", "glwt-1a2b3c", "glwt-4d5e6f", _token),
        Signer("basic", "extract:päß:word", "extract:other", _basic),
    )
}
"""Every scheme that is known by name."""
REQUEST = Request()
every = pytest.mark.parametrize("signer", SIGNERS.values(), ids=lambda signer: signer.name)


def refused(signer: Signer, signed: Signed, secrets: Sequence[str | bytes] | None = None) -> Refusal | None:
    """What we say of a request."""
    return verify(signer.scheme, [signer.secret] if secrets is None else secrets, signed)


def genuine(signer: Signer, request: Request = REQUEST, secret: str | None = None) -> Signed:
    """A request as its vendor signs it."""
    return request.signed(signer.sign(signer.secret if secret is None else secret, request))
