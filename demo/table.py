"""The tables that a round ends with: whether all records are equal, and what was done for it; events; sweeps;
webhooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.event_rules import Told
from demo.events import EventVerdict
from demo.sweeps import COUNTS, SweepVerdict
from demo.verify import Verdict
from demo.webhooks import COLUMNS as BROUGHT
from demo.webhooks import EndpointVerdict, ObjectVerdict, spread

COLUMNS = ("created", "updated", "deleted", "pages", "requests", "seconds")
# Of these one event is shown, with what was there before and is there now.
SHOWN = (
    "customer.described",
    "product.retired",
    "subscription.status_changed",
    "subscription.passed_1000",
    "contact.moved",
    "crm.contacts.deleted",
)
# A record brought back is an updated one to a person.
MEANS = {"undeleted": "updated", "regressed": "updated"}


@dataclass
class Work:
    """What the tasks of one object reported, added up."""

    counts: dict[str, float] = field(default_factory=dict)

    def add(self, report: Mapping[str, Any]) -> None:
        """Add what one task reported; one that asked the API for nothing has only closed its books."""
        if not report.get("requests"):
            return
        for name in (*COLUMNS, *MEANS):
            place = MEANS.get(name, name)
            self.counts[place] = self.counts.get(place, 0) + report.get(name, 0)

    def cells(self) -> list[str]:
        """Return one text per column."""
        counts = [f"{self.counts.get(name, 0):,}" for name in COLUMNS[:-1]]
        return [*counts, f"{self.counts.get('seconds', 0):.1f}"]


def print_table(verdicts: list[Verdict], work: Mapping[str, Work]) -> None:
    """Print a line per object, and what differs below."""
    line = "{:<18}{:>11}{:>13}{:>8}{:>9}{:>9}{:>9}{:>7}{:>10}{:>9}".format
    print("\n" + line("object", "in the API", "in Postgres", "equal", *COLUMNS))
    for verdict in verdicts:
        equal = "yes" if verdict.equal else "NO"
        cells = work[verdict.object].cells() if verdict.object in work else [""] * len(COLUMNS)
        print(line(verdict.object, f"{verdict.in_api:,}", f"{verdict.in_postgres:,}", equal, *cells).rstrip())
    print(*[verdict.complaint() for verdict in verdicts if not verdict.equal], sep="\n", flush=True)


def print_events(verdicts: Sequence[EventVerdict], events: Sequence[Told]) -> None:
    """Print a line per type of event, a few of them as they are told, and what differs below."""
    line = "{:<18}{:<30}{:>15}{:>15}{:>8}".format
    print("\n" + line("object", "event", "by the scripts", "in the outbox", "equal"))
    for verdict in verdicts:
        equal = "yes" if verdict.equal else "NO"
        print(line(verdict.object, verdict.type, f"{verdict.expected:,}", f"{verdict.in_outbox:,}", equal))
    first = {each.type: each for each in reversed(events)}
    examples = [f"  {first[type]}" for type in SHOWN if type in first]
    print("for example", *examples, sep="\n")
    print(*[verdict.complaint() for verdict in verdicts if not verdict.equal], sep="\n", flush=True)


def print_sweeps(verdicts: Sequence[SweepVerdict], said: Sequence[str]) -> None:
    """Print a line per object with what its sweep had to find, whether it reports just that, and what its log says."""
    line = "{:<18}{:>9}{:>7}{:>8}{:>9}{:>8}{:>6}{:>9}{:>11}{:>8}".format
    print("\n" + line("the sweep of", "seen", *COUNTS, "equal"))
    for verdict in verdicts:
        cells = [f"{verdict.expected[kind]:,}" for kind in ("seen", *COUNTS)]
        print(line(verdict.object, *cells, "yes" if verdict.equal else "NO"))
    print("in the tasks' logs", *[f"  {each}" for each in said], sep="\n")
    print(*[verdict.complaint() for verdict in verdicts if not verdict.equal], sep="\n", flush=True)


def print_webhooks(
    objects: Sequence[ObjectVerdict], endpoint: EndpointVerdict, runs: Sequence[Mapping[str, Any]]
) -> None:
    """Print a line per object with what brought its changes first, one for the endpoint, how long webhooks took, and
    what differs below."""
    line = "{:<18}{:>9}{:>7}{:>7}{:>9}{:>7}{:>8}{:>8}".format
    print("\n" + line("brought first by", *BROUGHT, "equal"))
    for each in objects:
        cells = [f"{each.counts[kind]:,}" for kind in BROUGHT]
        print(line(each.object, *cells, "yes" if each.equal else "NO"))
    line = f"{{:<18}}{'{:>11}' * len(endpoint.counts)}{{:>8}}".format
    print("\n" + line("the webhooks", *endpoint.counts, "equal"))
    print(line("stripe/events", *(f"{each:,}" for each in endpoint.counts.values()), "yes" if endpoint.equal else "NO"))
    print(f"from its arrival a webhook was in the inbox for {spread(endpoint.taken)},")
    print(f"  and the row that it told of was changed after {spread(endpoint.changed)}")
    by_watcher = sum(run["run_type"] == "asset_triggered" for run in runs)
    print(f"runs that applied them: {by_watcher:,} started by the watcher, {len(runs) - by_watcher:,} by the clock")
    complaints = [f"{each.object}: {'; '.join(each.wrong)}" for each in objects if not each.equal]
    complaints += ["; ".join(endpoint.wrong)] if not endpoint.equal else []
    print(*complaints, sep="\n", flush=True)
