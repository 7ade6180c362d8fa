"""Signatures: what vendors make passes, what anybody else makes does not, and no input raises.

Genuine ones come from the vendors' own libraries, or from an implementation of their documented steps that shares
nothing with ours; where a vendor has published a vector, it is here too.
"""

from __future__ import annotations

import base64
import time
from typing import get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.signing import SCHEMES, Scheme, SchemeName
from airflow_extract_provider.extract.webhooks.signatures import (
    Refusal,
    Signed,
)
from tests.webhooks.signers import REQUEST, SIGNERS, Signer, every, genuine, refused, replace, verify

SLACK_BODY = (
    "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    "&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    "%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    "&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)

judged = pytest.mark.parametrize(
    "signer", [each for each in SIGNERS.values() if each.takes is not None], ids=lambda signer: signer.name
)


def test_every_scheme_is_tried() -> None:
    """Each that has a name has a signer here."""
    assert set(SIGNERS) == set(SCHEMES) == set(get_args(SchemeName))


# --- what is genuine


@every
@given(body=st.text(st.characters(exclude_categories=["Cs"])), id=st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True))
@settings(max_examples=50)
def test_what_the_vendor_signs_passes(signer: Signer, body: str, id: str) -> None:
    """Whatever the body holds."""
    assert refused(signer, genuine(signer, replace(REQUEST, body=body, id=id))) is None


@pytest.mark.parametrize(
    ("scheme", "secret", "headers", "url", "body", "at"),
    [
        pytest.param(
            SCHEMES["github"],
            "It's a Secret to Everybody",
            {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
            "",
            "Hello, World!",
            0,
            id="GitHub: validating-webhook-deliveries",
        ),
        pytest.param(
            SCHEMES["slack"],
            "8f742231b10e8888abcd99yyyzzz85a5",
            {
                "x-slack-request-timestamp": "1531420618",
                "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            },
            "",
            SLACK_BODY,
            1531420618,
            id="Slack: verifying-requests-from-slack",
        ),
        pytest.param(
            SCHEMES["hubspot"],
            "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy",
            {
                "x-hubspot-request-timestamp": "1693657560000",
                "x-hubspot-signature-v3": "K36dawei4A+QBNolUOqo7s91KQDWQ5MXZ/QufNYuk/Y=",
            },
            "https://www.example.com/webhook_uri",
            "{'example_field':'example_value'}",
            1693657560,
            id="HubSpot: the tests of its Python library",
        ),
        pytest.param(
            SCHEMES["standard_webhooks"],
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            {
                "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            },
            "",
            '{"test": 2432232314}',
            1614265330,
            id="Standard Webhooks: the tests of its libraries",
        ),
        pytest.param(
            SCHEMES["standard_webhooks_ed25519"],
            "whpk_"
            + base64.b64encode(
                Ed25519PrivateKey.from_private_bytes(b"TESTSIGNINGKEYDONOTUSETHISFORANY")
                .public_key()
                .public_bytes_raw()
            ).decode(),
            {
                "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5W"
                "qyeFiL8Ag==",
            },
            "",
            '{"test": 2432232314}',
            1614265330,
            id="Standard Webhooks, ed25519: the tests of its Go library",
        ),
        pytest.param(
            # An older page of Zendesk's has values, and puts the body first.
            Scheme(scheme="zendesk", template="{body}{timestamp}"),
            "HRkRd4BeOAoUkfZr-mhauJT64rvBASlJRoIyPsd3zeA=",
            {
                "x-zendesk-webhook-signature": "tRDSF7URY8BLCDlaBcQ7FHu051Zk+aAB0NKMP53teMw=",
                "x-zendesk-webhook-signature-timestamp": "2021-07-25T10:00:00Z",
            },
            "",
            '{"say": "hello"}',
            1627207200,
            id="Zendesk: event-connectors/webhooks/verifying",
        ),
    ],
)
def test_published_vectors(
    scheme: Scheme, secret: str, headers: dict[str, str], url: str, body: str, at: float
) -> None:
    """What vendors have put on their pages or into the tests of their libraries; a byte more, and it is wrong."""
    signed = Signed("POST", url, headers, body.encode(), at)
    assert verify(scheme, [secret], signed) is None
    assert verify(scheme, [secret], replace(signed, body=body.encode() + b" ")) is Refusal.WRONG


@judged
@pytest.mark.parametrize("ago", [0, 100, 290, 310, 1_000, -100, -290, -310])
@pytest.mark.parametrize("what", ["nothing", "body", "secret", "signature"])
def test_the_vendors_library_says_the_same(signer: Signer, ago: int, what: str) -> None:
    """Both take a request, or neither. Stripe's and HubSpot's take any future: there we are stricter."""
    now = time.time()
    request = replace(REQUEST, at=int(now) - ago)
    headers = signer.sign(signer.other if what == "signature" else signer.secret, request)
    came = replace(request, body=request.body + " ") if what == "body" else request
    secret = signer.other if what == "secret" else signer.secret
    ours = verify(signer.scheme, [secret], came.signed(headers, now))
    if ours is Refusal.FUTURE and signer.name in ("stripe", "hubspot"):
        assert ago == -310
        assert signer.accepts(secret, came, headers)
    else:
        assert (ours is None) == signer.accepts(secret, came, headers) == (what == "nothing" and abs(ago) < 300)


# --- what is not


def _flipped(data: st.DataObject, text: str, start: int = 0) -> str:
    """A text with another visible character at one place."""
    place = data.draw(st.integers(start, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda char: char != text[place]))
    return text[:place] + other + text[place + 1 :]


@every
@given(data=st.data())
@settings(max_examples=150)
def test_another_byte_of_the_body(signer: Signer, data: st.DataObject) -> None:
    """It is wrong, where the body is signed."""
    signed = genuine(signer)
    place = data.draw(st.integers(0, len(signed.body) - 1))
    other = bytearray(signed.body)
    other[place] ^= data.draw(st.integers(1, 255))
    found = refused(signer, replace(signed, body=bytes(other)))
    assert found is (Refusal.WRONG if signer.scheme.signs else None)
    assert refused(signer, replace(signed, body=signed.body[:place])) is found


@every
@given(data=st.data())
@settings(max_examples=300)
def test_another_character_of_a_header(signer: Signer, data: st.DataObject) -> None:
    """Signature, timestamp and id: none of them has a character that does not matter. A changed timestamp is wrong, not
    old: nobody learns by it what would be right."""
    signed = genuine(signer)
    name = data.draw(st.sampled_from(signer.scheme.reads))
    start = len("Basic ") if signer.name == "basic" else 0  # its case does not matter
    headers = {**signed.headers, name: _flipped(data, signed.headers[name], start)}
    assert refused(signer, replace(signed, headers=headers)) in (Refusal.WRONG, Refusal.MALFORMED)


@every
@given(data=st.data())
@settings(max_examples=150)
def test_another_secret(signer: Signer, data: st.DataObject) -> None:
    """One character of it is enough."""
    secret = _flipped(data, signer.secret)
    if signer.scheme.algorithm == "ed25519":  # 32 bytes leave two bits of their last character unused
        assume(secret[:-2] != signer.secret[:-2] or secret[-1] != signer.secret[-1])
    assert refused(signer, genuine(signer), [secret]) is Refusal.WRONG


@every
@pytest.mark.parametrize("part", ["method", "url"])
@given(data=st.data())
@settings(max_examples=100)
def test_another_method_or_url(signer: Signer, part: str, data: st.DataObject) -> None:
    """It is wrong for those who sign it, and nothing to the others."""
    signed = genuine(signer)
    other = _flipped(data, getattr(signed, part))
    signs = signer.scheme.signs and part in signer.scheme.parts.slots
    changed = Signed(other, signed.url, signed.headers, signed.body, signed.at)
    if part == "url":
        changed = replace(signed, url=other)
    assert refused(signer, changed) is (Refusal.WRONG if signs else None)


@every
def test_a_header_is_missing(signer: Signer) -> None:
    """Not there, or empty, or nothing but spaces."""
    signed = genuine(signer)
    assert set(signer.scheme.reads) == set(signed.headers)
    for name in signed.headers:
        less = {each: value for each, value in signed.headers.items() if each != name}
        for headers in (less, {**less, name: ""}, {**less, name: "  "}):
            assert refused(signer, replace(signed, headers=headers)) is Refusal.MISSING


@every
def test_a_header_is_given_twice(signer: Signer) -> None:
    """The same value, or another's beside it, in either order: joined, it is none."""
    signed, others = genuine(signer), genuine(signer, secret=signer.other)
    for name, value in signed.headers.items():
        for joined in (f"{value}, {value}", f"{value}, {others.headers[name]}", f"{others.headers[name]}, {value}"):
            headers = {**signed.headers, name: joined}
            assert refused(signer, replace(signed, headers=headers)) in (Refusal.WRONG, Refusal.MALFORMED)


# --- whatever a stranger sends


@every
def test_a_header_of_other_characters(signer: Signer) -> None:
    """No header holds a character beyond Latin-1 on the wire."""
    signed = genuine(signer)
    for name, value in signed.headers.items():
        for other in (f"{value}\u0663", f"{value}\ud800"):
            found = refused(signer, replace(signed, headers={**signed.headers, name: other}))
            assert found is Refusal.MALFORMED


_WILD = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=60),
    st.text(st.characters(categories=["Cs", "Nd"]), max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["t=", "v1=", "v1,", "t=1,v1=", "v1a,AAAA", "Basic", "Basic ", "sha256=", ",", " ", "v1, v1,", "9" * 5000]
    ),
    st.lists(st.sampled_from(["t=1", "v1=a", "v1,a", "v1a,aa", "t=", ",", "é", "\udc80", "sha256=", "=", " "])).map(
        ",".join
    ),
    st.lists(st.sampled_from(["v1,a", "v1a,aa==", "v1a," + "A" * 88, "\x00", "v1"])).map(" ".join),
)


@every
@given(data=st.data(), body=st.binary(max_size=50), method=_WILD, url=_WILD, at=st.floats(-1e18, 1e18))
@settings(max_examples=300)
def test_nothing_raises(signer: Signer, data: st.DataObject, body: bytes, method: str, url: str, at: float) -> None:
    """Any headers, any method, any URL, any secrets: it is an answer, and never yes."""
    headers = {name: data.draw(_WILD) for name in signer.scheme.reads if data.draw(st.booleans())}
    secrets = data.draw(st.lists(st.one_of(_WILD, st.binary(max_size=40)), max_size=3))
    assume(signer.scheme.signs or not set(secrets) & set(headers.values()))
    signed = Signed(method, url, headers, body, at)
    assert isinstance(verify(signer.scheme, [signer.secret, *secrets], signed), Refusal)


@every
@given(method=_WILD, url=_WILD)
@example(method="\ud800", url="https://h.example/\udfff")
@settings(max_examples=100)
def test_a_wild_method_or_url(signer: Signer, method: str, url: str) -> None:
    """Beside headers that are right."""
    found = refused(signer, replace(genuine(signer), method=method, url=url))
    assert found is (Refusal.WRONG if signer.scheme.signs_url else None)


@every
@given(data=st.data())
@example(data=None)
@settings(max_examples=150)
def test_one_wild_header_beside_right_ones(signer: Signer, data: st.DataObject | None) -> None:
    """The others being right does not help."""
    signed = genuine(signer)
    for name in signer.scheme.reads:
        wild = "\ud800٣" if data is None else data.draw(_WILD)
        assume(wild.strip() != signed.headers[name])
        assert isinstance(refused(signer, replace(signed, headers={**signed.headers, name: wild})), Refusal)
