"""Webhooks during the demo: localstripe is told to send them, a forged one and a replayed one are sent on purpose, and
all are waited for."""

import hashlib
import hmac
import json
import time
from dataclasses import dataclass

import psycopg
import requests

from demo.progress import Progress
from demo.receiver import Receiver
from demo.services import WEBHOOKS, Services
from demo.table import print_webhooks
from demo.webhooks import (
    TYPES,
    Revisions,
    Sent,
    Stored,
    events,
    judge_endpoint,
    judge_objects,
    revisions,
    sent_since,
    stored,
)

SETTLE_SECONDS = 90.0
NEWEST = "select body from extract.inbox where source = 'stripe' order by place desc limit 1"
UNAUTHORIZED = 401


@dataclass(frozen=True)
class Subscription:
    """What there was before localstripe was told to send webhooks: its events by their ids, and how many changes of
    each record the copies counted."""

    known: frozenset[str]
    before: Revisions

    def sent(self, url: str) -> list[Sent]:
        """Return what localstripe has sent since, or is about to send."""
        return sent_since(self.known, events(url))


def subscribe(services: Services, progress: Progress) -> Subscription:
    """Have localstripe send webhooks from now on; nobody may write meanwhile."""
    with psycopg.connect(services.store) as connection:
        before = revisions(connection, "stripe")
    known = frozenset(str(each["id"]) for each in events(services.stripe.url))
    services.stripe.send_webhooks(services.receiver.address, services.receiver.secret, list(TYPES))
    progress.say(f"localstripe sends webhooks of {len(TYPES)} types to {services.receiver.address}")
    return Subscription(known, before)


def settle(services: Services, subscription: Subscription, progress: Progress) -> bool:
    """Wait until all webhooks that were sent are applied, and send two more that must change nothing; return whether
    the receiver answered as it should."""
    sent = {each.id for each in subscription.sent(services.stripe.url)}
    answered = provoke(services, progress)
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        services.receiver.check()
        now = stored(services.store)
        if is_settled(sent, now):
            break
        came = len(sent & {each.sent.id for each in now.deliveries})
        progress.show(f"webhooks · {len(sent):,} sent · {came:,} stored · {now.waiting:,} wait to be applied")
        time.sleep(0.7)
    progress.say(f"{len(sent):,} webhooks were sent; {now.waiting:,} of {len(now.deliveries):,} stored wait")
    return answered


def is_settled(sent: set[str], now: Stored) -> bool:
    """Whether all that was sent is there and applied, and counted: the receiver writes its counts every few seconds."""
    counted = now.counts.get("received", 0) + now.counts.get("duplicate", 0) + now.counts.get("forged", 0)
    return sent <= {each.sent.id for each in now.deliveries} and not now.waiting and counted >= len(sent) + 2


def provoke(services: Services, progress: Progress) -> bool:
    """Send a webhook as somebody would who does not know the secret, and one as somebody who has recorded it on its
    way; return whether the first was refused, and the second taken for what it is: there already."""
    forged = forge(services.receiver)
    replayed = replay(services.receiver, services.store)
    progress.say(f"a forged webhook is answered {forged}, one that is sent again {replayed}")
    return (forged, replayed) == (UNAUTHORIZED, requests.codes.ok)


def forge(receiver: Receiver) -> int:
    """Tell that a customer is gone, signed with a guess; return the answer's status."""
    event = {"id": "evt_forged", "type": "customer.deleted", "created": int(time.time())}
    body = json.dumps({**event, "data": {"object": {"id": "cus_forged"}}}).encode()
    return post(receiver, body, signature("a guess", body))


def replay(receiver: Receiver, store: str) -> int:
    """Send the newest webhook once more, to the last byte as localstripe has sent it; return the answer's status."""
    until = time.monotonic() + SETTLE_SECONDS
    with psycopg.connect(store, autocommit=True) as connection:
        while (row := connection.execute(NEWEST).fetchone()) is None and time.monotonic() < until:
            time.sleep(0.2)
    body = bytes(row[0]) if row else b""
    return post(receiver, body, signature(receiver.secret, body))


def signature(secret: str, body: bytes) -> str:
    """Sign a webhook as localstripe does: with the event's own instant."""
    at = b"%d" % json.loads(body)["created"]
    made = hmac.new(secret.encode(), at + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at.decode()},v1={made}"


def post(receiver: Receiver, body: bytes, signature: str) -> int:
    """Send a webhook; return the answer's status."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": signature}
    return requests.post(receiver.address, data=body, headers=headers, timeout=30).status_code


def judge_webhooks(services: Services, subscription: Subscription, progress: Progress) -> bool:
    """Compare what was sent with what became of it, print the tables; return whether all of it is as it must be."""
    progress.say("what webhooks brought, and what they did not tell of")
    sent, now = subscription.sent(services.stripe.url), stored(services.store)
    runs = services.airflow.api.runs(WEBHOOKS)
    objects, endpoint = judge_objects(sent, subscription.before, now), judge_endpoint(sent, now, runs)
    print_webhooks(objects, endpoint, runs)
    return endpoint.equal and all(each.equal for each in objects)
