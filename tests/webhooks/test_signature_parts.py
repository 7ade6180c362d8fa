"""The parts of a signature's spec: time, secrets, several signatures in one header, and schemes of one's own."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from airflow_extract_provider.extract.signing import SCHEMES, Scheme, SchemeName
from airflow_extract_provider.extract.webhooks import signatures
from airflow_extract_provider.extract.webhooks.signatures import (
    MOST_SIGNATURES,
    Refusal,
    Signed,
    Verifier,
    check_secret,
)
from tests.webhooks.signers import (
    REQUEST,
    SIGNERS,
    Signer,
    every,
    genuine,
    hmac_of,
    refused,
    replace,
    standard_key,
    verify,
)

timed = pytest.mark.parametrize(
    "signer", [each for each in SIGNERS.values() if each.scheme.timed], ids=lambda signer: signer.name
)


# --- time


@timed
def test_the_border_of_time(signer: Signer) -> None:
    """Five minutes to either side pass; a second more does not, nor a microsecond."""
    signed = genuine(signer)
    for at in (0.0, 300.0, -300.0):
        assert refused(signer, replace(signed, at=signed.at + at)) is None
    for at in (301.0, 300.000001, 1e12):
        assert refused(signer, replace(signed, at=signed.at + at)) is Refusal.OLD
    for at in (301.0, 300.000001, 1e9):
        assert refused(signer, replace(signed, at=signed.at - at)) is Refusal.FUTURE


@timed
def test_age_is_told_of_nothing_that_is_wrong(signer: Signer) -> None:
    """Old, but by another: wrong."""
    signed = genuine(signer, secret=signer.other)
    for at in (301, -301):
        assert refused(signer, replace(signed, at=signed.at + at)) is Refusal.WRONG


@pytest.mark.parametrize(
    "signer", [each for each in SIGNERS.values() if not each.scheme.timed], ids=lambda each: each.name
)
def test_without_a_timestamp_there_is_no_age(signer: Signer) -> None:
    """A replay cannot be told; `dedupe` is for it."""
    assert refused(signer, replace(genuine(signer), at=4e9)) is None


@pytest.mark.parametrize(
    ("tolerance", "ahead", "at", "found"),
    [
        ("10m", "5m", 600, None),
        ("10m", "5m", 601, Refusal.OLD),
        ("5m", "0s", -1, Refusal.FUTURE),
        ("0s", "0s", 0, None),
        (None, "5m", 1e9, None),
        ("5m", None, -1e9, None),
    ],
)
def test_other_tolerances(tolerance: str | None, ahead: str | None, at: float, found: Refusal | None) -> None:
    """As the file says; null: any."""
    scheme = Scheme.model_validate({"scheme": "stripe", "tolerance": tolerance, "ahead": ahead})
    signed = genuine(SIGNERS["stripe"])
    assert verify(scheme, [SIGNERS["stripe"].secret], replace(signed, at=signed.at + at)) is found


def _slack(timestamp: str) -> Signed:
    """Signed as Slack would, whatever the timestamp says."""
    made = hmac_of(b"secret", f"v0:{timestamp}:{{}}")
    headers = {"x-slack-request-timestamp": timestamp, "x-slack-signature": f"v0={made.hex()}"}
    return Signed("POST", "", headers, b"{}", 1_700_000_000)


@pytest.mark.parametrize(
    "timestamp",
    [
        *("9" * 400, "1" * 41, "NaN", "inf", "-1700000000", "+1700000000", "1.7e9", "1e5", "1_700_000_000"),
        *("1700000000.0", "0x6553F100", "١٧٠٠٠٠٠٠٠٠", "１７００", "²", "1700000000\0", "17 00", "-", ".", "t"),
    ],
)
def test_a_timestamp_that_is_none(timestamp: str) -> None:
    """Rightly signed, yet no timestamp: digits and nothing else, and not too many."""
    assert verify(SCHEMES["slack"], ["secret"], _slack(timestamp)) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("timestamp", "found"),
    [("0", Refusal.OLD), ("9" * 40, Refusal.FUTURE), ("0001700000000", None), ("1700000000", None)],
)
def test_a_timestamp_that_is_far_off(timestamp: str, found: Refusal | None) -> None:
    """Digits are a number, however far."""
    assert verify(SCHEMES["slack"], ["secret"], _slack(timestamp)) is found


@pytest.mark.parametrize(
    ("timestamp", "found"),
    [
        ("2023-11-14T22:13:20Z", None),
        ("2023-11-14T23:13:20.123456+01:00", None),
        ("2023-11-14T22:13:20", Refusal.MALFORMED),
        ("2023-11-14", Refusal.MALFORMED),
        ("2023-02-30T22:13:20Z", Refusal.MALFORMED),
        ("2023-11-14T22:13:60Z", Refusal.MALFORMED),
        ("0000-01-01T00:00:00Z", Refusal.MALFORMED),
        ("0001-01-01T00:00:00+14:00", Refusal.MALFORMED),
        ("9999-12-31T23:59:59Z", Refusal.FUTURE),
        ("1700000000", Refusal.MALFORMED),
        ('2023-11-14T22:13:20Z"', Refusal.MALFORMED),
    ],
)
def test_a_timestamp_as_a_text(timestamp: str, found: Refusal | None) -> None:
    """With its zone, as RFC 3339 has it."""
    made = base64.b64encode(hmac_of("secret", f"{timestamp}{{}}")).decode()
    headers = {"x-zendesk-webhook-signature": made, "x-zendesk-webhook-signature-timestamp": timestamp}
    assert verify(SCHEMES["zendesk"], ["secret"], Signed("POST", "", headers, b"{}", 1_700_000_000)) is found


# --- secrets


@every
def test_two_secrets(signer: Signer) -> None:
    """While one is replaced, both are right, in either order; a third is not. One that is unreadable or empty beside
    them changes nothing."""
    old, new = genuine(signer), genuine(signer, secret=signer.other)
    beside: list[list[str | bytes]] = [
        [signer.secret, signer.other],
        [signer.other, "", signer.secret],
        [b"\xff", signer.other.encode(), signer.secret],
    ]
    for secrets in beside:
        assert refused(signer, old, secrets) is None
        assert refused(signer, new, secrets) is None
    assert refused(signer, old, [signer.other, "third", standard_key(9)]) is Refusal.WRONG


@every
def test_the_secrets_are_those_of_now(signer: Signer) -> None:
    """Who has verified by one secret takes none but those that he is given next."""
    verifier, signed = Verifier(signer.scheme), genuine(signer)
    given: list[tuple[str, ...]] = [(signer.secret,), (signer.other,), (signer.other, signer.secret), (signer.other,)]
    assert [verifier(secrets, signed) is None for secrets in given] == [True, False, True, False]


@every
@pytest.mark.parametrize("secrets", [[], [""], [b""], ["", b""], ["  "], ["whsec_"], ["whpk_"], [":"]])
def test_without_a_secret_nothing_is_genuine(signer: Signer, secrets: list[str | bytes]) -> None:
    """Not even what was made with the empty key."""
    signed = genuine(signer)
    assert refused(signer, signed, secrets) is Refusal.WRONG
    if signer.name in ("stripe", "github", "shopify", "zendesk", "slack", "hubspot"):
        empty = [each for each in secrets if not each.strip()]
        assert (
            refused(signer, genuine(signer, secret="\0"), empty) is Refusal.WRONG
        )  # HMAC's keys are filled with zeros
    if signer.name == "gitlab_token":
        assert refused(signer, replace(signed, headers={"x-gitlab-token": ""}), secrets) is Refusal.MISSING


def test_no_secret_and_no_signature_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the right ones stand, the same is compared: time tells nothing of them."""
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    counts = set()
    signer = SIGNERS["svix"]
    wrong = genuine(signer, secret=signer.other).headers["svix-signature"]
    for signed in (_more(signer, [wrong]), _more(signer, [], [wrong])):
        for secrets in ([signer.secret, standard_key(8)], [standard_key(8), signer.secret], [standard_key(8)] * 2):
            compared.clear()
            signatures.verify(signer.scheme, secrets, signed)
            counts.add(len(compared))
    assert counts == {4}


def test_a_public_key_is_no_secret() -> None:
    """Who knows it could sign otherwise: it is never a key of HMAC, nor the other way round."""
    signer = SIGNERS["standard_webhooks_ed25519"]
    public = base64.b64decode(signer.secret.removeprefix("whpk_"))
    made = base64.b64encode(hmac_of(public, f"{REQUEST.id}.{REQUEST.at}.{REQUEST.body}")).decode()
    headers = {**signer.sign(signer.secret, REQUEST), "webhook-signature": f"v1,{made} v1a,{made}"}
    assert verify(SCHEMES["standard_webhooks"], [signer.secret], REQUEST.signed(headers)) is Refusal.WRONG
    assert verify(signer.scheme, [signer.secret], REQUEST.signed(headers)) is Refusal.WRONG
    for name, secret in {"standard_webhooks": signer.secret, signer.name: standard_key(1)}.items():
        with pytest.raises(ValueError, match=r"whsec|32 bytes"):
            check_secret(SCHEMES[name], secret)


@pytest.mark.parametrize(
    ("name", "secret", "words"),
    [
        ("stripe", "", "the secret is empty"),
        ("stripe", b" ", "the secret is empty"),
        ("basic", "no colon", "no user and password with a colon"),
        ("svix", "whsec_%%%", "the secret is no base64, as `key: whsec` says"),
        ("svix", "whsk_" + "A" * 32, "the secret is no base64"),
        ("svix", "whpk_" + "A" * 32, "begins with whpk_, and such a scheme takes the one that begins with whsec_"),
        ("gitlab", "hunter22", "spells 6 bytes, and a vendor's has 16 at least"),
        ("standard_webhooks_ed25519", standard_key(1), "takes the one that begins with whpk_"),
        ("svix", "whsec_", "the secret is no base64"),
        ("standard_webhooks_ed25519", "whpk_AAAA", "32 bytes, this has 3"),
    ],
)
def test_a_secret_that_verifies_nothing_is_told(name: SchemeName, secret: str | bytes, words: str) -> None:
    """So that it can be said when the receiver starts; the secret itself is not shown."""
    with pytest.raises(ValueError, match=words) as caught:
        check_secret(SCHEMES[name], secret)
    shown = secret.decode() if isinstance(secret, bytes) else secret
    assert shown.strip() in ("", "whsec_") or shown not in str(caught.value)


@every
def test_a_secret_that_verifies_is_taken(signer: Signer) -> None:
    """Nothing is said of it."""
    check_secret(signer.scheme, signer.secret)
    check_secret(signer.scheme, signer.secret.encode())


# --- several signatures in a header


def _more(signer: Signer, before: Sequence[str], after: Sequence[str] = ()) -> Signed:
    """Other elements around those that the vendor made."""
    signed, scheme = genuine(signer), signer.scheme
    assert scheme.separator is not None
    whole = scheme.separator.join([*before, signed.headers[scheme.header], *after])
    return replace(signed, headers={**signed.headers, scheme.header: whole})


@pytest.mark.parametrize("name", ["stripe", "standard_webhooks", "svix", "gitlab", "standard_webhooks_ed25519"])
def test_several_signatures(name: str) -> None:
    """One that is right is enough, wherever it stands; other versions are passed over; there are not too many."""
    signer = SIGNERS[name]
    others = genuine(signer, secret=signer.other).headers[signer.scheme.header].split(",", 1)[1].removeprefix("v1=")
    wrong = signer.scheme.prefix + others
    assert refused(signer, _more(signer, ["v0" + signer.scheme.prefix[-1] + "0" * 64, wrong], [wrong, "v9=x"])) is None
    assert refused(signer, _more(signer, [wrong] * (MOST_SIGNATURES - 1))) is None
    assert refused(signer, _more(signer, [wrong] * MOST_SIGNATURES)) is Refusal.MALFORMED
    assert refused(signer, _more(signer, [wrong], [wrong]), ["third"]) is Refusal.WRONG


def test_stripe_versions_that_are_no_v1() -> None:
    """A right v0 proves nothing, nor a second timestamp."""
    signer = SIGNERS["stripe"]
    made = genuine(signer).headers["stripe-signature"]
    for header in (
        made.replace("v1=", "v0="),
        made.replace("t=", "s="),
        f"t=1,{made}",
        f"{made},t=1",
        made[2:],
        "v1=,",
    ):
        assert refused(signer, replace(genuine(signer), headers={"stripe-signature": header})) is Refusal.MALFORMED


def test_a_signature_is_written_in_one_way() -> None:
    """Base64 with other bits unused, without its padding, or of the URL's alphabet; hex in capitals: none of it."""
    signed = genuine(SIGNERS["shopify"])
    made = signed.headers["x-shopify-hmac-sha256"]
    last = made[-2]
    twin = chr(ord(last) + 1)
    assert base64.b64decode(made[:-2] + twin + "=") == base64.b64decode(made)
    for other in (made[:-2] + twin + "=", made[:-1], made + "=", made + "A", f'"{made}"'):
        headers = {"x-shopify-hmac-sha256": other}
        assert refused(SIGNERS["shopify"], replace(signed, headers=headers)) is Refusal.WRONG
    github = genuine(SIGNERS["github"])
    shouted = {"x-hub-signature-256": "sha256=" + github.headers["x-hub-signature-256"][7:].upper()}
    assert refused(SIGNERS["github"], replace(github, headers=shouted)) is Refusal.WRONG


# --- the other parts of the spec


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "hex-upper", "base64"])
@pytest.mark.parametrize("key", ["text", "hex", "base64"])
def test_a_scheme_of_ones_own(algorithm: str, encoding: str, key: str) -> None:
    """Each hash, each encoding, each way to write the key; what is written otherwise is not that signature."""
    scheme = Scheme.model_validate(
        {
            "header": "X-Sig",
            "algorithm": algorithm,
            "encoding": encoding,
            "key": key,
            "template": "{method} {url} {body}",
        }
    )
    raw = b"a key of 24 bytes, or so"
    secret = {"text": raw.decode(), "hex": raw.hex().upper(), "base64": base64.b64encode(raw).decode()}[key]
    kind = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256(), "sha512": hashes.SHA512()}[algorithm]
    digest = hmac_of(raw, f"{REQUEST.method} {REQUEST.url} {REQUEST.body}", kind)
    written = {
        "hex": digest.hex(),
        "hex-upper": digest.hex().upper(),
        "base64": base64.b64encode(digest).decode(),
    }
    for way, made in written.items():
        assert verify(scheme, [secret], REQUEST.signed({"x-sig": made})) is (None if way == encoding else Refusal.WRONG)
        assert verify(scheme, ["00" + secret], REQUEST.signed({"x-sig": made})) is Refusal.WRONG


def test_elements_with_a_space_between() -> None:
    """Where the scheme says so, `, ` is no sign that a header was given twice; two timestamps still are."""
    scheme = Scheme.model_validate({"scheme": "stripe", "header": "X-Sig", "separator": ", ", "unit": "ms"})
    made = hmac_of("s", f"{REQUEST.at}000.{REQUEST.body}").hex()
    assert verify(scheme, ["s"], REQUEST.signed({"x-sig": f"t={REQUEST.at}000, v1={made}"})) is None
    twice = f"t={REQUEST.at}000, v1={made}, t={REQUEST.at}000, v1={made}"
    assert verify(scheme, ["s"], REQUEST.signed({"x-sig": twice})) is Refusal.MALFORMED


def test_ed25519_in_hex() -> None:
    """As Discord signs: key and signature in hex, the timestamp before the body."""
    scheme = Scheme.model_validate(
        {"header": "X-Sig", "algorithm": "ed25519", "key": "hex", "timestamp": "X-At", "template": "{timestamp}{body}"}
    )
    private = Ed25519PrivateKey.generate()
    secret = private.public_key().public_bytes_raw().hex()
    made = private.sign(f"{REQUEST.at}{REQUEST.body}".encode()).hex()
    headers = {"x-sig": made, "x-at": str(REQUEST.at)}
    assert verify(scheme, [secret], REQUEST.signed(headers)) is None
    for other in (made[:-2], made.upper(), made + "00"):
        assert verify(scheme, [secret], REQUEST.signed({**headers, "x-sig": other})) is Refusal.WRONG
    assert verify(scheme, [secret], REQUEST.signed({**headers, "x-sig": "zz"})) is Refusal.WRONG


def test_a_token_behind_a_word() -> None:
    """Such as Bearer."""
    scheme = Scheme.model_validate({"header": "Authorization", "algorithm": "token", "prefix": "Bearer "})
    assert verify(scheme, ["abc"], REQUEST.signed({"authorization": "Bearer abc"})) is None
    assert verify(scheme, ["abc"], REQUEST.signed({"authorization": "Bearer abcd"})) is Refusal.WRONG
    assert verify(scheme, ["abc"], REQUEST.signed({"authorization": "abc"})) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic YTpi", None),
        ("basic YTpi", None),
        ("BASIC  YTpi", None),
        ("Basic YTpiYw==", Refusal.WRONG),
        ("Basic a:b", Refusal.WRONG),
        ("Bearer YTpi", Refusal.MALFORMED),
        ("YTpi", Refusal.MALFORMED),
        ("Basic", Refusal.MALFORMED),
    ],
)
def test_user_and_password(header: str, found: Refusal | None) -> None:
    """The word before them may be written in any case."""
    assert verify(SCHEMES["basic"], ["a:b"], REQUEST.signed({"authorization": header})) is found


def test_the_url_of_hubspot() -> None:
    """Twelve codes are decoded before, in either case and once; the others stay. The vendor's library signs what it is
    given, so the decoded form is given to it."""
    sent = "https://h.example/a%3Ab%2fc?q=%3F%40%21%24%27%28%29%2A%2C%3B&r=%20%26%3D%253A%C3%BC"
    decoded = "https://h.example/a:b/c?q=?@!$'()*,;&r=%20%26%3D%253A%C3%BC"
    signer = SIGNERS["hubspot"]
    signed = genuine(signer, replace(REQUEST, url=decoded))
    assert refused(signer, replace(signed, url=sent)) is None
    assert refused(signer, replace(signed, url=decoded)) is None
    as_sent = Scheme(scheme="hubspot", url="sent")
    assert verify(as_sent, [signer.secret], replace(signed, url=sent)) is Refusal.WRONG


@pytest.mark.parametrize("token", ["voil\u00e0", "tok\u00a0\u0085\x1f", "\u2026\u00c5"])
def test_a_token_of_other_characters(token: str) -> None:
    """Its bytes are compared, those too that Python takes for a space; what HTTP takes for one stands around it."""
    scheme = SCHEMES["gitlab_token"]
    for sent, found in ((token, None), (f" {token}\t", None), (f"{token}\u00a0", Refusal.WRONG)):
        headers = {"x-gitlab-token": sent.encode().decode("latin-1")}
        assert verify(scheme, [token], REQUEST.signed(headers)) is found


def test_the_border_between_two_parts_cannot_be_moved() -> None:
    """A body that holds what could be a timestamp and a body: neither is taken for one under the same signature."""
    signer = SIGNERS["standard_webhooks"]
    body = f'{{"note":"hi.{REQUEST.at + 86400}.{{"id":1}}'
    signed = genuine(signer, replace(REQUEST, body=body))
    assert refused(signer, signed) is None
    begin, at, end = body.partition(f".{REQUEST.at + 86400}.")
    moved = {
        **signed.headers,
        "webhook-id": f"{signed.headers['webhook-id']}.{REQUEST.at}.{begin}",
        "webhook-timestamp": at.strip("."),
    }
    later = replace(signed, headers=moved, body=end.encode(), at=signed.at + 86400)
    assert refused(signer, later) is Refusal.MALFORMED


@pytest.mark.parametrize(
    ("template", "sent", "moved"),
    [
        ("{timestamp}.{body}.{id}", ("evt1", "a=1.5&b=2"), ("5&b=2.evt1", "a=1")),
        ("{body}.{id}.{timestamp}", ("evt1", "a=1.5"), ("5.evt1", "a=1")),
        ("{id}:{body}.{timestamp}", ("evt", "1:2"), ("evt:1", "2")),
    ],
)
def test_the_border_of_an_id_wherever_it_stands(template: str, sent: tuple[str, str], moved: tuple[str, str]) -> None:
    """On both of its sides: half of a body under a genuine signature is refused."""
    scheme = Scheme(header="x-sig", timestamp="x-at", id="x-id", template=template)
    (text, same) = (template.format(id=id, timestamp=REQUEST.at, body=body) for id, body in (sent, moved))
    assert text == same
    for (id, body), found in ((sent, None), (moved, Refusal.MALFORMED)):
        headers = {"x-sig": hmac_of("key", text).hex(), "x-at": str(REQUEST.at), "x-id": id}
        assert verify(scheme, ["key"], replace(REQUEST, body=body).signed(headers)) is found


def test_what_is_signed_ends_with_a_line() -> None:
    """White space at the ends of a template is signed as well."""
    scheme = Scheme(header="x-signature", template="{body}\n")
    made = hmac_of(b"key", f"{REQUEST.body}\n").hex()
    assert verify(scheme, ["key"], REQUEST.signed({"x-signature": made})) is None


def test_a_body_that_is_no_text() -> None:
    """Bytes are signed, not characters."""
    body = bytes(range(256))
    headers = {"x-hub-signature-256": "sha256=" + hmac_of("k", body).hex()}
    assert verify(SCHEMES["github"], [b"k"], replace(REQUEST.signed(headers), body=body)) is None
