"""Why a webhook was refused is in the log, for whoever set the endpoint up; and what tells two deliveries apart."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any

import pytest

from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver
from airflow_extract_provider.receiver.counts import Tally
from airflow_extract_provider.receiver.service import loaded
from airflow_extract_provider.receiver.settings import Settings
from tests.said import said_by
from tests.webhooks.memory import Memory
from tests.webhooks.signers import hmac_of

SECRET = "marked-secret-4711"


def receiving(keep: Memory, **spec: Any) -> Receiver:
    """A receiver of one endpoint."""
    return Receiver([Door("shop", "main", Endpoint(secret="shop", **spec), lambda: (SECRET,))], keep, Tally())


def answered(receiver: Receiver, headers: dict[str, str], body: bytes = b"{}") -> int:
    """The status that a request gets."""
    sent: list[Any] = []
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/webhooks/shop/main", "headers": raw}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(receiver(scope, receive, send))
    return int(sent[0]["status"])


def github(body: bytes) -> dict[str, str]:
    """The header of its signature."""
    return {"x-hub-signature-256": f"sha256={hmac_of(SECRET, body).hex()}"}


def stripe(at: float) -> dict[str, str]:
    """The header of a signature that was made then."""
    return {"stripe-signature": f"t={at:.0f},v1={hmac_of(SECRET, f'{at:.0f}.{{}}').hex()}"}


CASES: dict[str, tuple[str, dict[str, str] | int, str]] = {
    "no header": ("github", {}, "it has no x-hub-signature-256."),
    "an empty one": ("github", {"x-hub-signature-256": " "}, "it has no x-hub-signature-256."),
    "another form": (
        "github",
        {"x-hub-signature-256": "x"},
        "it is not signed as the endpoint's `verify` says (x-hub-signature-256).",
    ),
    "another secret": (
        "github",
        {"x-hub-signature-256": "sha256=" + "0" * 64},
        "no secret that is accepted makes its signature.",
    ),
    "one header of three": (
        "svix",
        {"svix-signature": "v1,x"},
        "it has no svix-timestamp, svix-id.",
    ),
    "an id that could be parted elsewhere": (
        "svix",
        {"svix-signature": "v1,x", "svix-timestamp": "1700000000", "svix-id": "a.b"},
        "it is not signed as the endpoint's `verify` says (svix-signature, svix-timestamp, svix-id), or its id holds "
        "what stands beside it in the `template`.",
    ),
    "old": ("stripe", -1000, "its signature is right, but older than `tolerance`."),
    "ahead": (
        "stripe",
        1000,
        "its signature is right, but further ahead than `ahead`: a clock is wrong.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_why_one_is_refused(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the names of headers, and nothing of what stands in them; however many come, once a minute."""
    verify, given, why = CASES[case]
    headers = stripe(time.time() + given) if isinstance(given, int) else given
    receiver = receiving(Memory(), verify=verify)
    with caplog.at_level(logging.INFO, logger="airflow_extract_provider"):
        assert {answered(receiver, headers) for _ in range(3)} == {401}
    said = [(each.levelname, each.getMessage()) for each in said_by(Receiver.__module__, caplog)]
    assert said == [("INFO", f"webhooks of shop/main are refused: {why}")]
    assert SECRET not in caplog.text


def test_each_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers without any header do not hide that one is missing in what the vendor sends."""
    receiver = receiving(Memory(), verify="svix")
    with caplog.at_level(logging.INFO, logger="airflow_extract_provider"):
        for headers in ({}, {"svix-signature": "v1,x", "svix-timestamp": "1700000000"}, {}):
            answered(receiver, headers)
    said = [each.getMessage().partition("refused: ")[2] for each in said_by(Receiver.__module__, caplog)]
    assert said == ["it has no svix-signature, svix-timestamp, svix-id.", "it has no svix-id."]


def test_another_type_is_another_message() -> None:
    """The same id and body under another type is not the same delivery; under the same one it is."""
    keep = Memory()
    receiver = receiving(keep, verify="github", dedupe="{header:x-id}", type="{header:x-topic}")
    for more in ({"x-topic": "made"}, {"x-topic": "gone"}, {"x-topic": "made"}, {}, {"x-id": "2", "x-topic": "made"}):
        assert answered(receiver, {**github(b"{}"), "x-id": "1", **more}) == 200
    made, gone, again, none, other = (each.dedupe for each in keep.kept)
    assert made == again
    assert isinstance(made, uuid.UUID)
    assert len({made, gone, none, other}) == 4


def test_an_address_that_is_signed_must_be_known(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a proxy each would be refused: it is said when the receiver starts, unless the address is given."""
    from airflow.sdk import Connection

    (tmp_path / "crm.yaml").write_text(
        "source: crm\nconnection: crm_api\n"
        "objects: {deals: {path: /deals, records: data, key: id, pages: {by: last_key, send: after}}}\n"
        "webhooks:\n  main: {verify: hubspot, secret: crm}\n  other: {verify: github, secret: crm}\n",
        encoding="utf-8",
    )

    def find(conn_id: str, example: str) -> Connection:
        return Connection(conn_id=conn_id, conn_type="webhook", password=SECRET)

    loaded(Settings(sources=tmp_path, public_url="https://hooks.example.com"), find)
    assert said_by(loaded.__module__, caplog) == []
    loaded(Settings(sources=tmp_path), find)
    (record,) = said_by(loaded.__module__, caplog)
    assert "the API of crm/main signs the address that it sends to, and no public URL is given" in record.getMessage()
