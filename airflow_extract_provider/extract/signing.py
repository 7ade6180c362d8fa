"""How an API signs its webhooks: one small spec, and the schemes of vendors in its words. To add one, add it here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from airflow_extract_provider.extract.paging import Duration, Frozen

__all__ = ["SCHEMES", "Scheme", "SchemeName", "Template", "Verify"]

SchemeName: TypeAlias = Literal[
    "basic",
    "github",
    "gitlab",
    "gitlab_token",
    "hubspot",
    "shopify",
    "slack",
    "standard_webhooks",
    "standard_webhooks_ed25519",
    "stripe",
    "svix",
    "zendesk",
]
"""The schemes that are known by name."""

_HEADER = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SLOT = re.compile(r"\{([^{}]*)\}")
_SLOTS = ("body", "id", "method", "timestamp", "url")
_STANDARD_HMAC = "v1,"
_USUAL = timedelta(minutes=5)
"""What vendors' own libraries take for too old."""
_OF_SIGNATURES = (
    "template",
    "timestamp",
    "element",
    "unit",
    "tolerance",
    "ahead",
    "id",
    "encoding",
    "separator",
    "key",
    "url",
)
"""The parts that mean nothing where nothing is signed."""


def _header(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{name!r} is no header's name")
    return name.lower()


def _of_header(text: str) -> str:
    if not text.isascii():
        raise ValueError(f"{text!r} is not ASCII: no header has it")
    return text


_Header: TypeAlias = Annotated[str, AfterValidator(_header)]
_Mark: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=False, max_length=100), AfterValidator(_of_header)]


@dataclass(frozen=True, slots=True)
class Template:
    """What is signed: ``texts`` stand around what is filled in, one more than there are ``slots``."""

    texts: tuple[bytes, ...]
    slots: tuple[str, ...]

    @classmethod
    def parsed(cls, text: str) -> Template:
        """Raises ValueError: a brace is alone, or a slot is not known."""
        parts = _SLOT.split(text)
        if any("{" in each or "}" in each for each in parts[::2]):
            raise ValueError(f"the template {text!r} has a brace without its other")
        if strange := [each for each in parts[1::2] if each not in _SLOTS]:
            known = ", ".join(f"{{{each}}}" for each in _SLOTS)
            raise ValueError(f"the template's {{{strange[0]}}} is none of {known}")
        return cls(tuple(each.encode() for each in parts[::2]), tuple(parts[1::2]))


class Scheme(Frozen):
    """How a signature is made and where it stands: a vendor's scheme by its name, other parts laid over it, or all
    parts."""

    scheme: SchemeName | None = Field(
        default=None, description="the scheme of a vendor; what is said beside it stands in for that part of it"
    )
    header: _Header = Field(default="", description="the header that holds the signature; required without a `scheme`")
    algorithm: Literal["sha256", "sha1", "sha512", "ed25519", "token", "basic"] = Field(
        default="sha256",
        description="HMAC with this hash; an ed25519 signature; or a token, or user and password, sent as they are",
    )
    encoding: Literal["hex", "hex-upper", "base64"] = Field(
        default="hex", description="how the signature is written: hex in lower or in upper case, or base64"
    )
    prefix: _Mark = Field(
        default="", description="what stands before the signature (or the token), such as `sha256=` or `v1,`"
    )
    separator: Literal[",", ", ", ";", " "] | None = Field(
        default=None,
        description="what stands between the elements of the header, where it holds several signatures or a timestamp; "
        "elements without the `prefix` are passed over",
    )
    template: Annotated[str, StringConstraints(strip_whitespace=False)] = Field(
        default="{body}",
        description="what is signed: `{body}`, `{timestamp}`, `{id}`, `{method}`, `{url}` and the text around them",
    )
    timestamp: _Header | None = Field(default=None, description="the header that holds when it was signed")
    element: _Mark | None = Field(
        default=None,
        min_length=1,
        description="where that stands in the signature's own header: what its element begins with, such as `t=`",
    )
    unit: Literal["s", "ms", "rfc3339"] = Field(
        default="s", description="how it is written: seconds or milliseconds since 1970, or a text"
    )
    tolerance: Duration | None = Field(
        default=None,
        description="how old a signature may be: 5m by default where there is a timestamp; null: any age will do",
    )
    ahead: Duration | None = Field(
        default=None,
        description="how far its timestamp may lie in the future: 5m by default where there is one; null: any will do",
    )
    id: _Header | None = Field(default=None, description="the header that holds the `{id}`")
    key: Literal["text", "base64", "hex", "whsec"] = Field(
        default="text",
        description="how the secret spells the key: its characters are the key, or it is base64 or hex of it, or "
        "base64 with `whsec_` before it (`whpk_` before a public key)",
    )
    url: Literal["sent", "decoded"] = Field(
        default="sent",
        description="what `{url}` is: the public URL as it was sent, or with : / ? @ ! $ ' ( ) * , ; in place of their "
        "percent-codes",
    )

    @model_validator(mode="before")
    @classmethod
    def _laid_over(cls, data: Any) -> Any:
        """What a vendor's scheme says below what is said here; an age where there is a timestamp."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if (name := data.get("scheme")) is not None:
            if not isinstance(name, str) or name not in SCHEMES:
                known = ", ".join(sorted(SCHEMES))
                raise ValueError(f"{name!r} is no scheme: known are {known}; or write its parts")
            below = SCHEMES[name]
            data = {**{part: getattr(below, part) for part in below.model_fields_set}, **data}
        if data.get("timestamp") is not None or data.get("element") is not None:
            data = {"tolerance": _USUAL, "ahead": _USUAL, **data}
        return data

    @model_validator(mode="after")
    def _can_work(self) -> Scheme:
        complaint = next(_amiss(self), None)
        if complaint is not None:
            raise ValueError(complaint)
        return self

    @cached_property
    def parts(self) -> Template:
        """The template, taken apart once."""
        return Template.parsed(self.template)

    @property
    def signs(self) -> bool:
        """Whether something is signed: no token is sent as it is."""
        return self.algorithm not in ("token", "basic")

    @property
    def signs_url(self) -> bool:
        """Whether the URL is signed: then its public form must be known."""
        return self.signs and "url" in self.parts.slots

    @property
    def reads(self) -> tuple[str, ...]:
        """The headers that are read, their names in lower case."""
        return tuple(each for each in (self.header, self.timestamp, self.id) if each)

    @property
    def timed(self) -> bool:
        """Whether the sender says when it was signed."""
        return self.timestamp is not None or self.element is not None


def _amiss(scheme: Scheme) -> Iterator[str]:
    """What cannot work, in the words of the file."""
    if not scheme.header:
        yield "say which `header` holds the signature, or which `scheme` it is"
    if not scheme.signs:
        yield from _amiss_unsigned(scheme)
        return
    yield from _amiss_places(scheme)
    slots = Template.parsed(scheme.template).slots
    if "body" not in slots:
        yield "the template has no {body}: anyone could change it"
    yield from _amiss_time(scheme, slots)
    yield from _amiss_slots(scheme, slots)
    if scheme.algorithm == "ed25519" and scheme.key == "text":
        yield "a public ed25519 key is 32 bytes: say by `key` how they are written (base64, hex or whsec)"


def _amiss_unsigned(scheme: Scheme) -> Iterator[str]:
    default = {name: Scheme.model_fields[name].default for name in _OF_SIGNATURES}
    said = [name for name in _OF_SIGNATURES if getattr(scheme, name) != default[name]]
    if said:
        yield f"with `algorithm: {scheme.algorithm}` nothing is signed: leave out `{said[0]}`"
    if scheme.algorithm == "basic" and scheme.prefix:
        yield "`Basic` stands before user and password in any case: leave out `prefix`"


def _amiss_places(scheme: Scheme) -> Iterator[str]:
    yield from _amiss_marks(scheme)
    if len(set(scheme.reads)) != len(scheme.reads):
        yield "signature, timestamp and id stand in headers of their own: two of them have one name"
    if scheme.timestamp is not None and scheme.element is not None:
        yield "the timestamp stands in one place: either `timestamp`, a header, or `element`"
    if scheme.element is None:
        return
    if scheme.separator is None:
        yield "`element` needs the `separator` of the header's elements"
    if scheme.prefix and (scheme.prefix.startswith(scheme.element) or scheme.element.startswith(scheme.prefix)):
        yield "`element` and `prefix` cannot be told apart"


def _amiss_marks(scheme: Scheme) -> Iterator[str]:
    marks = {"prefix": scheme.prefix, "element": scheme.element or ""}
    if scheme.separator is not None:
        for name, mark in marks.items():
            if scheme.separator in mark:
                yield f"`{name}` has the `separator` in it: no element of the header begins so"
    elif scheme.prefix[:1].isspace():
        yield "`prefix` begins with a space: no header does"
    if scheme.algorithm == "ed25519" and scheme.prefix == _STANDARD_HMAC:
        yield f"behind `{_STANDARD_HMAC}` stands no ed25519 signature: in Standard Webhooks its `prefix` is `v1a,`"


def _amiss_time(scheme: Scheme, slots: tuple[str, ...]) -> Iterator[str]:
    if "timestamp" in slots and not scheme.timed:
        yield "the template has a {timestamp}, but neither `timestamp` nor `element` says where it stands"
    if scheme.timed and "timestamp" not in slots:
        yield "the template has no {timestamp}: anyone could make an old signature young"
    for name in ("tolerance", "ahead"):
        if getattr(scheme, name) is not None and not scheme.timed:
            yield f"`{name}` needs a timestamp: neither `timestamp` nor `element` says where it stands"
    if scheme.unit != "s" and not scheme.timed:
        yield "`unit` needs a timestamp: neither `timestamp` nor `element` says where it stands"


def _amiss_slots(scheme: Scheme, slots: tuple[str, ...]) -> Iterator[str]:
    if "id" in slots and scheme.id is None:
        yield "the template has an {id}, but no `id` says which header holds it"
    if scheme.id is not None and "id" not in slots:
        yield "the template has no {id}: leave out `id`, or sign it"
    if scheme.url != "sent" and "url" not in slots:
        yield "`url` needs a template with {url}"


def _standard(name: str, algorithm: Literal["sha256", "ed25519"] = "sha256", version: str = "v1") -> Scheme:
    """Standard Webhooks, with headers that begin with a name."""
    return Scheme(
        header=f"{name}-signature",
        algorithm=algorithm,
        encoding="base64",
        separator=" ",
        prefix=f"{version},",
        template="{id}.{timestamp}.{body}",
        timestamp=f"{name}-timestamp",
        id=f"{name}-id",
        key="whsec",
    )


SCHEMES: Mapping[str, Scheme] = {
    # https://docs.stripe.com/webhooks#verify-manually: t= and any number of v1= (two while a secret is rolled); other
    # versions, such as v0 of test events, are to be ignored. The whole secret, whsec_ and all, is the key.
    "stripe": Scheme(
        header="stripe-signature", separator=",", prefix="v1=", element="t=", template="{timestamp}.{body}"
    ),
    # https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    "github": Scheme(header="x-hub-signature-256", prefix="sha256="),
    # https://shopify.dev/docs/apps/build/webhooks/verify-deliveries: the client secret, which is the key as it stands.
    "shopify": Scheme(header="x-shopify-hmac-sha256", encoding="base64"),
    # https://developers.hubspot.com/docs/apps/developer-platform/build-apps/authentication/request-validation: the
    # public URL with its query, twelve percent-codes decoded, the others as they are; older than 5 minutes: reject.
    "hubspot": Scheme(
        header="x-hubspot-signature-v3",
        encoding="base64",
        template="{method}{url}{body}{timestamp}",
        timestamp="x-hubspot-request-timestamp",
        unit="ms",
        url="decoded",
    ),
    # https://docs.slack.dev/authentication/verifying-requests-from-slack: more than five minutes from our time: reject.
    "slack": Scheme(
        header="x-slack-signature",
        prefix="v0=",
        template="v0:{timestamp}:{body}",
        timestamp="x-slack-request-timestamp",
    ),
    # https://developer.zendesk.com/documentation/webhooks/verifying/: base64(HMACSHA256(TIMESTAMP + BODY)). The secret
    # looks like base64, but is the key as it stands. No tolerance is documented.
    "zendesk": Scheme(
        header="x-zendesk-webhook-signature",
        encoding="base64",
        template="{timestamp}{body}",
        timestamp="x-zendesk-webhook-signature-timestamp",
        unit="rfc3339",
    ),
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md: several signatures
    # while a secret is rotated, each with its version; v1 is HMAC, v1a ed25519. Two schemes, so that no public key is
    # ever taken for a secret one. "Some allowable tolerance": its libraries take 5 minutes both ways.
    "standard_webhooks": _standard("webhook"),
    "standard_webhooks_ed25519": _standard("webhook", "ed25519", "v1a"),
    # https://docs.svix.com/receiving/verifying-payloads/how-manual: the same under names of its own.
    "svix": _standard("svix"),
    # https://docs.gitlab.com/user/project/integrations/webhooks/#signing-tokens: Standard Webhooks, with 32 bytes.
    "gitlab": _standard("webhook"),
    # The same page: the older secret token, which GitLab sends as it is.
    "gitlab_token": Scheme(header="x-gitlab-token", algorithm="token"),
    # RFC 7617: user and password, which many vendors (Zendesk among them) send where one asks them to.
    "basic": Scheme(header="authorization", algorithm="basic"),
}
"""What vendors document, by name. What a vendor leaves open (how old, how far ahead) is five minutes, as in most of
their libraries. GitHub and Shopify sign no time."""


def _named(value: Any) -> Any:
    """A name alone is short for ``{scheme: name}``."""
    if not isinstance(value, str | Mapping | Scheme):
        raise ValueError(f"it is the name of a scheme ({', '.join(sorted(SCHEMES))}), or its parts")
    return {"scheme": value} if isinstance(value, str) else value


Verify: TypeAlias = Annotated[Scheme, BeforeValidator(_named, json_schema_input_type=SchemeName | Scheme)]
