"""How an API signs, as a file says it: by a vendor's name, by a name and other parts, or by all parts; and what cannot
work is refused in the file's words."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.signing import SCHEMES, Scheme, SchemeName, Template, Verify
from airflow_extract_provider.extract.sourcefile import parse_source

VERIFY: TypeAdapter[Scheme] = TypeAdapter(Verify)
SOURCE = """
source: crm
connection: crm_api
objects:
  contacts: {path: /v1/contacts, records: data, key: id, pages: {by: last_key, send: after}}
"""
OWN = "header: X-Sig"
TIMED = "header: X-Sig, timestamp: X-At, template: '{timestamp}{body}'"


def scheme(text: str) -> Scheme:
    """What stands behind `verify`."""
    return VERIFY.validate_python(yaml.safe_load(text))


def refused(text: str) -> str:
    """What a file with it is told."""
    data: dict[str, Any] = yaml.safe_load(SOURCE)
    data["webhooks"] = {"events": {"verify": yaml.safe_load(text), "secret": "crm_webhook"}}
    with pytest.raises(SourceError) as caught:
        parse_source(data, "crm.yaml")
    return str(caught.value)


def test_the_names() -> None:
    """Those of the JSON schema are those of the table."""
    assert sorted(get_args(SchemeName)) == sorted(SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_name_is_short_for_its_parts(name: str) -> None:
    """Both forms are one, and so is what is written out; it can be sent to a worker, and be a key."""
    found = scheme(name)
    assert found == scheme(f"{{scheme: {name}}}")
    parts = {part: getattr(found, part) for part in found.model_fields_set - {"scheme"}}
    assert Scheme.model_validate(parts) == SCHEMES[name]
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({found, scheme(name)}) == 1


def test_parts_laid_over_a_name() -> None:
    """Only what is said changes; null takes a bound away."""
    found = scheme("{scheme: stripe, tolerance: 10m, ahead: null}")
    assert found == scheme("stripe").model_copy(update={"tolerance": timedelta(minutes=10), "ahead": None})
    moved = scheme("{scheme: svix, header: X-Acme-Signature, timestamp: X-Acme-At, id: X-Acme-Id}")
    assert moved.reads == ("x-acme-signature", "x-acme-at", "x-acme-id")
    assert (moved.prefix, moved.key, moved.template) == ("v1,", "whsec", "{id}.{timestamp}.{body}")


def test_parts_alone() -> None:
    """A header is enough; an age is asked for where there is a timestamp."""
    plain, timed = scheme(f"{{{OWN}}}"), scheme(f"{{{TIMED}}}")
    assert (plain.algorithm, plain.encoding, plain.template, plain.reads) == ("sha256", "hex", "{body}", ("x-sig",))
    assert (plain.tolerance, plain.ahead, plain.timed, plain.signs_url) == (None, None, False, False)
    assert (timed.tolerance, timed.ahead, timed.timed) == (timedelta(minutes=5), timedelta(minutes=5), True)
    assert timed.parts == Template((b"", b"", b""), ("timestamp", "body"))
    assert Scheme(header="X-Sig") == plain
    assert scheme(f"{{{OWN}, algorithm: token, prefix: 'Bearer '}}").prefix == "Bearer "


def test_who_needs_the_public_url() -> None:
    """Only HubSpot."""
    assert [name for name, each in SCHEMES.items() if each.signs_url] == ["hubspot"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "strype",
            "`webhooks.events.verify`: 'strype' is no scheme: known are basic, github, gitlab, gitlab_token, hub",
        ),
        ("{scheme: [stripe]}", "`webhooks.events.verify`: ['stripe'] is no scheme: known are"),
        (
            "{scheme: stripe, tolernace: 5m}",
            "`webhooks.events.verify.tolernace` is no known key; known here: ahead, alg",
        ),
        ("{}", "say which `header` holds the signature, or which `scheme` it is"),
        ("{header: 'a b'}", "`webhooks.events.verify.header`: 'a b' is no header's name"),
        (f"{{{OWN}, prefix: 'é='}}", "`webhooks.events.verify.prefix`: 'é=' is not ASCII: no header has it"),
        (f"{{{OWN}, algorithm: md5}}", "`webhooks.events.verify.algorithm`: Input should be 'sha256', 'sha1'"),
        (f"{{{OWN}, template: '{{body'}}", "the template '{body' has a brace without its other"),
        (
            f"{{{OWN}, template: '{{body}}{{time}}'}}",
            "the template's {time} is none of {body}, {id}, {method}, {timest",
        ),
        (f"{{{OWN}, template: '{{url}}'}}", "the template has no {body}: anyone could change it"),
        (
            f"{{{OWN}, template: '{{timestamp}}.{{body}}'}}",
            "the template has a {timestamp}, but neither `timestamp` nor `element` says where it stands",
        ),
        (f"{{{OWN}, timestamp: X-At}}", "the template has no {timestamp}: anyone could make an old signature young"),
        (f"{{{OWN}, tolerance: 5m}}", "`tolerance` needs a timestamp: neither `timestamp` nor `element` says"),
        (f"{{{OWN}, ahead: 5m}}", "`ahead` needs a timestamp"),
        (f"{{{OWN}, unit: ms}}", "`unit` needs a timestamp"),
        ("{scheme: github, tolerance: 10m}", "`tolerance` needs a timestamp"),
        ("{scheme: stripe, tolerance: 10}", "10 is no duration: write a number with us, ms, s, m, h or d, such as 30s"),
        (f"{{{OWN}, template: '{{id}}.{{body}}'}}", "the template has an {id}, but no `id` says which header holds it"),
        (f"{{{OWN}, id: X-Id}}", "the template has no {id}: leave out `id`, or sign it"),
        (f"{{{OWN}, url: decoded}}", "`url` needs a template with {url}"),
        (
            f"{{{TIMED}, separator: ',', element: t=}}",
            "the timestamp stands in one place: either `timestamp`, a header,",
        ),
        (f"{{{OWN}, element: t=, template: '{{timestamp}}{{body}}'}}", "`element` needs the `separator` of the header"),
        (
            f"{{{OWN}, separator: ',', element: v, prefix: v1=, template: '{{timestamp}}{{body}}'}}",
            "`element` and `prefix` cannot be told apart",
        ),
        (f"{{{TIMED}, id: x-sig}}", "signature, timestamp and id stand in headers of their own: two of them have one"),
        (f"{{{OWN}, algorithm: ed25519}}", "a public ed25519 key is 32 bytes: say by `key` how they are written"),
        ("5", "`webhooks.events.verify`: it is the name of a scheme (basic, github,"),
        ("[github]", "`webhooks.events.verify`: it is the name of a scheme (basic, github,"),
        (f"{{{OWN}, separator: ',', prefix: ',v1='}}", "`prefix` has the `separator` in it: no element of the header"),
        (
            f"{{{OWN}, separator: ' ', element: 't= ', prefix: v1=, template: '{{timestamp}}{{body}}'}}",
            "`element` has the `separator` in it",
        ),
        (f"{{{OWN}, prefix: ' v1='}}", "`prefix` begins with a space: no header does"),
        ("{scheme: svix, algorithm: ed25519}", "behind `v1,` stands no ed25519 signature: in Standard Webhooks its"),
        (
            f"{{{OWN}, algorithm: token, template: 'v0:{{body}}'}}",
            "with `algorithm: token` nothing is signed: leave o",
        ),
        ("{scheme: stripe, algorithm: token}", "with `algorithm: token` nothing is signed: leave out `template`"),
        (f"{{{OWN}, algorithm: token, key: hex}}", "with `algorithm: token` nothing is signed: leave out `key`"),
        ("{scheme: basic, tolerance: 5m}", "with `algorithm: basic` nothing is signed: leave out `tolerance`"),
        (
            "{scheme: basic, prefix: 'Basic '}",
            "`Basic` stands before user and password in any case: leave out `prefix`",
        ),
    ],
)
def test_what_cannot_work(text: str, words: str) -> None:
    """Each is told in the words of the file, when it is loaded."""
    assert words in refused(text)


def test_from_python() -> None:
    """The same, where a scheme is made in Python."""
    with pytest.raises(ValidationError, match="needs a timestamp"):
        Scheme(header="X-Sig", tolerance=timedelta(minutes=5))
    with pytest.raises(ValidationError, match="frozen"):
        SCHEMES["stripe"].header = "x"
