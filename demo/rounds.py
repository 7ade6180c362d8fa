"""The demo's three rounds, each judged at its end.

Everything from the beginning; once more while others write; and what was changed behind the APIs' backs, by a sweep.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from demo.behind import Done, change_contacts, change_stripe
from demo.events import EventVerdict, compare, expected, newest, outbox, polled_steps, steps, untold_contacts
from demo.kinto_contacts import State, Truth, truth_over_http, writing
from demo.progress import Progress
from demo.seed import Stripe
from demo.services import OBJECTS, SYNC, WEBHOOKS, Services
from demo.stripe_changes import changing
from demo.subscription import Subscription, settle
from demo.sweeps import Swept, judge_sweep, stored_reports
from demo.table import Work, print_events, print_sweeps, print_table
from demo.verify import Listing, listings, verify, verify_contacts
from demo.watch import Run, Watch, ended, now, reports, sweeps_said

# Kinto's `late` in sources/crm.yaml, and its `Date`, which has whole seconds.
SETTLE = timedelta(seconds=5 + 1.2)
STRIPE_PAUSE = 0.03
KINTO_PAUSE = 0.3
# As in `sources/`: of these a sweep asks the API by key what has become of them.
BY_KEY = ("customers", "products", "plans", "subscriptions", "invoices", "contacts")
VERSION = {"contacts": "last_modified"}


@dataclass(frozen=True)
class Look:
    """All that both APIs held at a moment at which nobody wrote."""

    stripe: dict[str, Listing]
    contacts: Truth

    @property
    def live(self) -> dict[str, Listing]:
        """All records by their object, without tombstones."""
        return {**self.stripe, "contacts": self.contacts.live}


def first_round(services: Services, progress: Progress) -> tuple[Look, bool]:
    """Copy all that is there; return it, and whether every object is equal."""
    progress.say("round 1: everything, from the beginning")
    begin = now()
    services.airflow.api.unpause(SYNC)
    # Before its first webhook: what it is started by is watched only once it is switched on.
    services.airflow.api.unpause(WEBHOOKS)
    progress.say(f"switched on {SYNC}, which runs every 15 s, and {WEBHOOKS}")
    watching = Watch(services, progress)
    run, state = watching.backfill(reset=False)
    synced = watching.wait_for_sync(begin)
    there = look(services, progress)
    equal = judge(services, there, begin, [run])
    silent = not outbox(services.store)
    progress.say(f"the outbox is {'empty: what was there at first is no news' if silent else 'NOT empty'}")
    return there, equal and silent and state == "success" and synced


def second_round(services: Services, progress: Progress, before: Look, subscription: Subscription) -> tuple[Look, bool]:
    """Copy while others write and localstripe tells of it by webhooks, and once more when they are done; return what is
    there then, and whether all is equal, and told as events.

    ``before`` is what the APIs hold at the beginning.
    """
    kinto, stripe = services.kinto.url, services.stripe.url
    progress.say("round 2: others write in both APIs while all is read again")
    begin, watching = now(), Watch(services, progress)
    with (
        writing(kinto, seed=2, own=services.contacts, pause=KINTO_PAUSE) as written,
        changing(stripe, seed=2, pause=STRIPE_PAUSE) as changed,
    ):
        first, state = watching.backfill(reset=True)
        synced = watching.wait_for_sync(begin)
    stopped = now()
    batches, operations = sum(each.batches for each in written), sum(each.operations for each in written)
    progress.say(f"the writers stopped: {operations:,} operations in {batches:,} batches in Kinto, by four at once;")
    progress.say(f"in localstripe: {', '.join(f'{what} {count}' for what, count in sorted(changed.items()))}")
    answered = settle(services, subscription, progress)
    # Of the rest nothing in localstripe tells: what was read before its change is seen by reading it again.
    second, again = watching.backfill(reset=True)
    settled = watching.wait_for_sync(stopped + SETTLE)
    after = look(services, progress)
    equal = judge(services, after, begin, [first, second])
    told = judge_events(services, before, after, [each for writer in written for each in writer.states])
    return after, equal and told and answered and (state, again) == ("success", "success") and synced and settled


def third_round(services: Services, progress: Progress, before: Look) -> bool:
    """Change records behind the APIs' backs, and have all swept; return whether the sweep reports exactly that, and
    all is equal, and told as events.

    ``before`` is what the APIs hold at the beginning, all of it copied.
    """
    progress.say("round 3: records are changed and removed behind the APIs' backs; a sweep finds them")
    begin, watching, place = now(), Watch(services, progress), newest(services.store)
    done, traceless = change_behind(services, progress, before)
    runs, state = watching.sweep()
    after = look(services, progress)
    purged = {key: int(str(before.contacts.live[key]["last_modified"])) for key in done["contacts"].removed}
    copied = replace(after, contacts=Truth(after.contacts.live, after.contacts.deleted | purged))
    equal = judge(services, copied, begin, runs)
    found = judge_sweeps(services, before, after, done, runs, watching.begin)
    told = judge_swept_events(services, before, after, place)
    return equal and found and told and traceless and state == "success"


def change_behind(services: Services, progress: Progress, before: Look) -> tuple[dict[str, Done], bool]:
    """Change and remove records; return what was done by object, and whether the APIs have nothing to tell of it."""
    stripe = Stripe(services.stripe.url)
    events = len(stripe.everything("events"))
    done = change_stripe(services.stripe.url, before.stripe, seed=3)
    done["contacts"] = change_contacts(services.kinto.dsn, before.contacts, seed=3)
    for name, what in done.items():
        progress.say(f"behind the API's back, {name}: {what}")
    told = len(stripe.everything("events")) - events
    tombstones = truth_over_http(services.kinto.url).deleted.keys() ^ before.contacts.deleted.keys()
    progress.say(
        f"localstripe's events tell {told or 'nothing'} of it, Kinto's tombstones {len(tombstones) or 'nothing'}"
    )
    return done, not told and not tombstones


def look(services: Services, progress: Progress) -> Look:
    """Read both APIs in full."""
    progress.say("reading both APIs in full, with plain HTTP")
    return Look(listings(services.stripe.url), truth_over_http(services.kinto.url))


def judge(services: Services, there: Look, begin: datetime, runs: list[Run]) -> bool:
    """Compare, print the table with the work done by these runs, and by the sync's since ``begin``; return whether
    every object is equal."""
    api = services.airflow.api
    verdicts = verify(there.stripe, services.store) + verify_contacts(there.contacts, services.store)
    work: dict[str, Work] = {}
    syncs = [(SYNC, run["dag_run_id"]) for run in api.runs(SYNC) if (ended(run) or begin) > begin]
    for run in dict.fromkeys([*runs, *syncs]):
        for name, report in reports(api, run):
            work.setdefault(name, Work()).add(report)
    print_table(verdicts, work)
    return all(verdict.equal for verdict in verdicts)


def judge_events(services: Services, before: Look, after: Look, log: list[State]) -> bool:
    """Compare the outbox with what the scripts changed, print the table; return whether all is told.

    ``log`` is what Kinto answered to the writers.
    """
    events = outbox(services.store)
    seen = {(each.key, each.at) for each in events if each.object == "contacts" and each.at is not None}
    found = {name: steps(before.stripe[name], after.stripe[name]) for name in OBJECTS}
    found["contacts"] = polled_steps(before.contacts, log, after.contacts, seen)
    verdicts = compare(expected(found), events)
    print_events(verdicts, events)
    explain(before, after, len(log), seen)
    return all_told(services, verdicts)


def judge_swept_events(services: Services, before: Look, after: Look, place: int) -> bool:
    """The same of what a sweep has found, which is what differs between two looks; ``place`` is that of the last event
    before."""
    # A sweep may learn of a change that carries no instant, or an old one.
    events = [replace(each, at=None) for each in outbox(services.store, place)]
    found = {name: steps(before.live[name], after.live[name]) for name in after.live}
    verdicts = compare(expected(found), events)
    print_events([each for each in verdicts if each.expected or each.in_outbox], events)
    return all_told(services, verdicts)


def all_told(services: Services, verdicts: list[EventVerdict]) -> bool:
    """Return whether all events are as they must be, and no stored change of a contact is without one."""
    untold = untold_contacts(services.store)
    if untold:
        print(f"{len(untold):,} contacts have a stored change without an event: {', '.join(untold[:3])}, ...")
    return all(verdict.equal for verdict in verdicts) and not untold


def judge_sweeps(
    services: Services, before: Look, after: Look, done: dict[str, Done], runs: list[Run], begin: int
) -> bool:
    """Compare what the sweeps of these runs report with what was done, print the table; return whether it is that.

    ``begin`` is the ledger's last row before them.
    """
    api = services.airflow.api
    found = [(name, report) for run in runs for name, report in reports(api, run)]
    xcom = {name: report["sweep"] for name, report in found if report["walk"] == "rebackfill"}
    stored = stored_reports(services.store, begin)
    verdicts = []
    for name in after.live:
        swept = Swept(before.live[name], after.live[name], VERSION.get(name), name in BY_KEY)
        told = {"XCom": xcom.get(name, {}), "extract.sweep": stored.get(name, {})}
        verdicts.append(judge_sweep(name, done[name], swept, told))
    print_sweeps(verdicts, sweeps_said(api, runs))
    brought = sum(
        report[kind] for _, report in found if report["walk"] == "incremental" for kind in ("created", "updated")
    )
    print(f"the incremental walk of the same run brought {brought or 'nothing'} of it", flush=True)
    return all(verdict.equal for verdict in verdicts) and not brought


def explain(before: Look, after: Look, written: int, seen: set[tuple[str, int]]) -> None:
    """Say what the events are compared with."""
    unseen = after.contacts.deleted.keys() - before.contacts.live.keys() - {key for key, _ in seen}
    print("by the scripts: in localstripe, what differs between two full listings; each such thing was changed once;")
    print(f"  in Kinto, where {len(seen):,} of {written:,} states were seen, what these tell, joined end to end;")
    print(f"  {len(unseen):,} contacts came and went between two looks: stored as deleted, but no news", flush=True)
