"""``make mutants``: one line of a law is broken at a time, and the tests must notice. A survivor is a missing test.

Each mutant is applied to a copy of the checkout in which the tests named beside it run until one fails; before that
they must all pass unchanged. Ends with 1 when a mutant survives. `python -m tests.mutants [WORDS]` runs those whose
name holds one of the words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutant import Mutant
from tests.mutants_of_webhooks import WEBHOOKS

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_extract_provider/extract"
LIMIT = 600.0
"""Seconds for the tests beside one mutant; all of them, which run once before, have as many for each file or folder."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the first test that failed; None: it survived."""

    killer: str | None
    seconds: float


HAZARDS = ("tests/hazards",)
STORE = ("tests/store",)
WINDOWS = ("tests/extract/test_window.py",)
CRASH = ("tests/extract/test_cursor.py", "tests/extract/test_cursor_incremental.py", "tests/crash")
EVENTS = (
    "tests/exactly_once/test_edges.py",
    "tests/exactly_once/test_together.py",
    "tests/exactly_once/test_interleavings.py",
    "tests/exactly_once/test_baseline.py",
    "tests/store/test_outbox.py",
    "tests/events",
)
_LIMITS = (
    "(select set_config('idle_in_transaction_session_timeout', %(idle)s, true),\n"
    "             set_config('lock_timeout', %(idle)s, true) offset 0) as limits\n"
)
_HELD = (
    "where source = %(source)s and object = %(object)s and walk = %(walk)s and part = %(part)s and number = %(number)s"
)
SWEEPS = ("tests/crash/test_sweeps.py",)
WALKS = ("tests/properties/test_total.py", "tests/hazards", "tests/properties/test_walk.py")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "1 no skip",
        "a page whose anchor is gone is taken as it comes",
        "api/paginators/by_number.py",
        "        if found.seen >= 0 or found.begin == 0 or",
        "        if found.seen >= -1 or found.begin == 0 or",
        WALKS,
    ),
    Mutant(
        "2 one truth",
        "the Variable is written before the commit",
        "pipeline.py",
        "        applied = self._applied(batches)\n",
        "        self._at = Cursor(self._at.sequence, arrived[-1].step.position)\n"
        "        self._show_now()\n"
        "        applied = self._applied(batches)\n",
        CRASH,
    ),
    Mutant(
        "2 one truth",
        "an edited cursor is followed ahead of what was reached",
        "resume.py",
        '        raise _ahead(books, "the ledger holds no such place since the walk last started over")',
        "        return Cursor(head.sequence, shown.position)",
        CRASH,
    ),
    Mutant(
        "2 one truth",
        "an incremental cursor may be put ahead",
        "resume.py",
        "closed > head.position.closed:",
        "closed is None:",
        CRASH,
    ),
    Mutant(
        "2 one truth",
        "a walk builds upon a backfill of other records",
        "resume.py",
        '    if books.ledger.walk != "backfill" and filled is not None:\n        _check_made',
        '    if books.ledger.walk == "none" and filled is not None:\n        _check_made',
        ("tests/extract/test_changed.py",),
    ),
    Mutant(
        "3 ties",
        "a tie that fills a page is passed",
        "api/paginators/by_instant.py",
        "        raise _tied(place.anchor, count, page.rows, self.object)",
        "        return None",
        ("tests/extract/test_tied.py", *HAZARDS),
    ),
    Mutant(
        "3 ties",
        "one round over an instant is enough",
        "api/paginators/by_instant.py",
        "        if place.rounds and found == place.before and",
        "        if found and",
        WALKS,
    ),
    Mutant(
        "4 pages move",
        "pages do not overlap",
        "api/paginators/by_number.py",
        "        return max(place.seen - 1 - len(place.tied) + step, 0)",
        "        return max(place.seen + step, 0)",
        WALKS,
    ),
    Mutant(
        "4 pages move",
        "the walk advances by rows asked for",
        "api/paginators/by_number.py",
        "            return found.begin + page.rows",
        "            return found.begin + found.asked",
        WALKS,
    ),
    Mutant(
        "4 pages move",
        "an empty page behind the last record is the end",
        "api/paginators/by_number.py",
        "            return Turn((), (), replace(self._nothing_behind(place), ending=",
        "            return Turn((), (), complete=True, place=replace(self._nothing_behind(place), ending=",
        ("tests/properties/test_found.py", *WALKS),
    ),
    Mutant(
        "4 pages move",
        "a page that does not connect to the tie before it is passed",
        "api/paginators/by_instant.py",
        "found == place.before and place.border == border:",
        "found == place.before:",
        ("tests/properties/test_found.py", *WALKS),
    ),
    Mutant(
        "4 pages move",
        "one pass over a list without order is enough",
        "api/paginators/by_number.py",
        "        return self.object.order is not None\n\n    def start",
        "        return True\n\n    def start",
        WALKS,
    ),
    Mutant(
        "4 pages move",
        "tokens may run in a circle",
        "api/paginators/turn.py",
        "    if digest == lap.mark:",
        "    if digest is None:",
        ("tests/extract/test_bad_input.py", *WALKS),
    ),
    Mutant(
        "4 pages move",
        "a window counts though the API's total moved while it was read",
        "api/paginators/by_instant.py",
        "        if place.total is not None and count != place.total:",
        "        if place.total is not None and count < 0:",
        WALKS,
    ),
    Mutant(
        "4 pages move",
        "a window counts though it ended short of the API's total",
        "api/paginators/by_instant.py",
        "        if rows != count:",
        "        if rows < 0:",
        WALKS,
    ),
    Mutant(
        "5 hand-off",
        "the incremental walk begins where the backfill ended",
        "walks/lap.py",
        "        began_at=position.began_at or page.began_at,",
        "        began_at=page.began_at,",
        WALKS,
    ),
    Mutant(
        "5 hand-off",
        "a clock that is hours ahead is believed",
        "api/client.py",
        "    return min(date, sent + _MAX_SKEW) - took if date.tzinfo",
        "    return date - took if date.tzinfo",
        ("tests/extract/test_client.py",),
    ),
    Mutant(
        "6 late commits",
        "what may come late is not waited for",
        "walks/lap.py",
        "    closed = position.began_at - late\n",
        "    closed = position.began_at\n",
        WALKS,
    ),
    Mutant(
        "6 late commits",
        "lookback is ignored",
        "walks/incremental.py",
        "position.closed - object.lookback",
        "position.closed",
        WALKS,
    ),
    Mutant(
        "6 late commits",
        "a filter with > is asked as if it were >=",
        "walks/lap.py",
        '            values["since"] -= since.precision',
        "            pass",
        WALKS,
    ),
    Mutant(
        "7 order",
        "the order is not checked",
        "walks/order.py",
        "    if object.order is None:\n        return None\n    last,",
        "    if True:\n        return None\n    last,",
        ("tests/extract/test_bad_input.py", *WALKS),
    ),
    Mutant(
        "7 order",
        "instants are compared as texts",
        "api/record.py",
        "        if self.order in self.key and raw.startswith(b'\"'):",
        "        if raw.startswith(b'\"'):",
        ("tests/extract", *WALKS),
    ),
    Mutant(
        "8 newer wins",
        "an older version is written over a newer one",
        "store/judge.py",
        '    return "back" if looked_after else "older"',
        '    return "newer"',
        STORE,
    ),
    Mutant(
        "8 newer wins",
        "an equal version is never looked at again",
        "store/judge.py",
        '        return "newer" if coming.deleted or looked_after else "unknown"',
        '        return "newer" if coming.deleted else "older"',
        STORE,
    ),
    Mutant(
        "9 claim",
        "a lost claim is taken for stored",
        "store/rows.py",
        "[record for record in good if record.key not in claimed])",
        "[record for record in good if differing[record.key]])",
        STORE,
    ),
    Mutant(
        "9 claim",
        "rows are locked in no order",
        "store/apply.sql",
        "where key = any(%(keys)b::text[])\norder by key\nfor update;",
        "where key = any(%(keys)b::text[])\norder by md5(key || pg_backend_pid()::text)\nfor update;",
        STORE,
    ),
    Mutant(
        "9 claim",
        "unchanged records are written all the same",
        "store/apply.sql",
        "    where stored.key is null or given.key",
        "    where true or stored.key is null or given.key",
        STORE,
    ),
    Mutant(
        "10 once per change",
        "an id does not know the revision",
        "events/event.py",
        "told = [source, object, birth, key, rule, revision, ordinal,",
        "told = [source, object, birth, key, rule, 0, ordinal,",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "a copy that was overtaken in its own page tells nothing",
        "store/rows.py",
        "        work.events += detect(",
        "        work.events = detect(",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "what an edge remembers is not kept",
        "store/detect.py",
        "    _remember(conn, target, learned)\n",
        "",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "a first backfill tells of everything",
        "store/target.py",
        '"over" if born.filled else',
        '"over" if born.number >= 0 else',
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "the tombstone of a record that nobody knew is told of",
        "store/rows.py",
        "for record in records if not record.deleted]",
        "for record in records]",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "what was never alive counts as back",
        "store/rows.py",
        "    if before is not None and before.never_alive:",
        "    if before is not None and before.never_alive and not before.data:",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "events get places in no order",
        "store/outbox.sql",
        "where place is null order by sequence limit",
        "where place is null order by md5(sequence::text) limit",
        EVENTS,
    ),
    Mutant(
        "10 once per change",
        "an event goes on though an earlier one of its record is parked",
        "handlers.py",
        "            self.blocked.add(item.placed.whose)",
        "            pass",
        ("tests/test_relay.py",),
    ),
    Mutant(
        "10 once per change",
        "events of a sink are not published",
        "store/apply.py",
        "        given.sink.publish(work.events)\n",
        "        pass\n",
        EVENTS,
    ),
    Mutant(
        "12 one runner",
        "the fence is read, not updated",
        "store/fence.sql",
        f"update {{extract}}.fence set heartbeat = clock_timestamp()\nfrom {_LIMITS}{_HELD}\n"
        "returning clock_timestamp();",
        f"select clock_timestamp() from {{extract}}.fence, {_LIMITS}{_HELD};",
        ("tests/store", "tests/crash"),
    ),
    Mutant(
        "12 one runner",
        "whoever was taken over may go on",
        "store/fence.sql",
        " and number = %(number)s\nreturning clock_timestamp();\n\n-- name: hold",
        "\nreturning clock_timestamp();\n\n-- name: hold",
        ("tests/store", "tests/crash"),
    ),
    Mutant(
        "12 one runner",
        "whoever was taken over may say that nothing differs",
        "store/apply.sql",
        "      and number = %(number)s and %(plain)s",
        "      and %(plain)s",
        ("tests/store", "tests/crash"),
    ),
    Mutant(
        "13 nothing bad dropped",
        "bad records go nowhere",
        "store/apply.py",
        "        found[batch.entry.position.pages, batch.sent_at] += batch.bad\n",
        "        pass\n",
        ("tests/extract/test_quarantine.py", *STORE),
    ),
    Mutant(
        "14 fidelity",
        "a name that stands twice in the answer is accepted",
        "api/cut.py",
        "    if not _is_made_of(bytes(value), found):",
        "    if not found and found:",
        ("tests/extract",),
    ),
    Mutant(
        "15 a need found",
        "one key that cannot be read stops all others",
        "walks/by_key.py",
        "        if not self._waiting or self._in_a_row > bound:",
        "        if not self._waiting or self._in_a_row > bound or isinstance(exc, _OWN):",
        ("tests/extract/test_by_key.py",),
    ),
    Mutant(
        "15 a need found",
        "a note made meanwhile is struck out with the old one",
        "store/refetch.sql",
        "      on given.key = noted.key and given.number = noted.number\n",
        "      on given.key = noted.key\n",
        STORE,
    ),
    Mutant(
        "client",
        "a quota is written whoever has changed it meanwhile",
        "store/quota.sql",
        " and connection = %(connection)s and revision = %(revision)s\n",
        " and connection = %(connection)s\n",
        ("tests/store/test_quota.py",),
    ),
    Mutant(
        "client",
        "what the API asks to wait is not waited for",
        "api/usage.py",
        "        new = replace(self, blocked=max(self.blocked, clock + ceil(pause * 1e6)))",
        "        new = replace(self, blocked=max(self.blocked, clock))",
        ("tests/extract/test_limits.py", "tests/store/test_quota.py"),
    ),
    Mutant(
        "client",
        "a token that is being renewed goes out with a request",
        "store/token_row.py",
        "        if self.access is None or self.spending is not None or self.lost_at",
        "        if self.access is None or self.lost_at",
        ("tests/store/test_tokens.py", "tests/crash/test_tokens.py"),
    ),
    Mutant(
        "client",
        "the login stays in links that the API gives",
        "api/client.py",
        "        return without_secrets(page, self._secrets(), object.records)",
        "        return page",
        ("tests/extract/test_address.py",),
    ),
    Mutant(
        "client",
        "an answer may take for ever",
        "api/transport.py",
        "                    late.fired = True\n",
        "                    continue\n",
        ("tests/extract/test_transport.py",),
    ),
    Mutant(
        "client",
        "a 200 that is no page is believed to stay so",
        "api/client.py",
        "            if is_page(answer.body):\n",
        "            if is_page(answer.body) or True:\n",
        ("tests/extract/test_bad_input.py", "tests/faults/test_exact.py"),
    ),
    Mutant(
        "client",
        "the environment's network goes before the connection's",
        "api/transport.py",
        "            given = network_of(self._session)\n",
        '            given = {"verify": None, "proxies": {}}\n',
        ("tests/extract/test_transport.py",),
    ),
    Mutant(
        "2 one truth",
        "a sweep's ledger row and its books begin apart",
        "sweeps.py",
        "            sweep.begin(books.conn,",
        "        sweep.begin(books.conn,",
        SWEEPS,
    ),
    Mutant(
        "2 one truth",
        "a sweep's last ledger row and its books are written apart",
        "sweeps.py",
        "            left = sweep.end(books.conn,",
        "        left = sweep.end(books.conn,",
        SWEEPS,
    ),
    Mutant(
        "8 newer wins",
        "what was stored while a sweep was open is absent",
        "store/sweep.sql",
        "digest from {table}\n    where deleted_at is null and applied_at < %(before)s "
        "and coalesce((version is not null) = %(dated)s::bool, true)\n    offset 0\n), absent",
        "digest from {table}\n    where deleted_at is null and %(before)s is not null "
        "and coalesce((version is not null) = %(dated)s::bool, true)\n    offset 0\n), absent",
        SWEEPS,
    ),
    Mutant(
        "8 newer wins",
        "what was stored since it was judged is deleted",
        "store/judge.py",
        '        return "delete" if coming.sent_at > stored.applied_at else "unchanged"',
        '        return "delete"',
        SWEEPS,
    ),
    Mutant(
        "8 newer wins",
        "a sweep is not told what other walks see",
        "pipeline.py",
        "        return replace(target, sweep=open, sweeps=",
        "        open = open if self._sweeps is not None else None\n        return replace(target, sweep=open, sweeps=",
        SWEEPS,
    ),
    Mutant(
        "8 newer wins",
        "what another walk sees stays noted as absent",
        "store/sweep.py",
        "    if sweep.judged:\n",
        "    if sweep.judged and not keys:\n",
        SWEEPS,
    ),
    Mutant(
        "11 deletes need proof",
        "a list out of a cache proves what is there now",
        "store/sweep.py",
        "    if looked_at < sweep.looked_at:\n",
        "    if looked_at is None:\n",
        SWEEPS,
    ),
    Mutant(
        "11 deletes need proof",
        "what a sweep that was given up had not seen stays noted",
        "store/sweep.sql",
        "delete from {extract}.refetch\n"
        "where source = %(source)s and object = %(object)s and reason = 'absent' and told_at is null;",
        "select from given_up;",
        SWEEPS,
    ),
    Mutant(
        "11 deletes need proof",
        "a sweep may delete as much as it likes",
        "store/sweep.py",
        "        if absent > most:\n",
        "        if absent < 0:\n",
        SWEEPS,
    ),
    Mutant(
        "11 deletes need proof",
        "an empty list deletes a few records",
        "store/sweep.py",
        "    most = allowed(stored) if seen or insist else 0\n",
        "    most = allowed(stored)\n",
        SWEEPS,
    ),
    Mutant(
        "1 no skip",
        "a window ends where the filter's unit begins",
        "walks/window.py",
        "    end = end if end == until else end + unit\n",
        "    end = end if end == until else end\n",
        WINDOWS,
    ),
    Mutant(
        "1 no skip",
        "a window by another field is coverage",
        "walks/window.py",
        "    if object.since_field not in (None, object.version):\n",
        "    if object.since_field is object:\n",
        WINDOWS,
    ),
    Mutant(
        "1 no skip",
        "an emptied table is covered",
        "pipeline.py",
        "        check_copied(books, beginning, reset=False)\n",
        "",
        WINDOWS,
    ),
    Mutant(
        "1 no skip",
        "a sweep of a copy that was begun anew covers the new one",
        "store/migrations/0006_windows.sql",
        "greatest(coalesce(begun.sequence, 0), coalesce(copies.born, 0))",
        "coalesce(begun.sequence, 0)",
        WINDOWS,
    ),
    Mutant(
        "1 no skip",
        "what another request has read covers this one",
        "store/migrations/0006_windows.sql",
        "      and coalesce(position ->> 'made' = copies.made, true)\n",
        "",
        WINDOWS,
    ),
    Mutant(
        "2 one truth",
        "half a window of the copy before is gone on with",
        "store/ledger.sql",
        "   or sequence < (select",
        "   or false and sequence < (select",
        WINDOWS,
    ),
    Mutant(
        "3 ties",
        "a page that was asked to be small is taken for the last",
        "api/paginators/by_instant.py",
        "        full = min(place.largest or size, size) if self.pages.size else place.largest or size\n",
        "        full = place.largest or size\n",
        WINDOWS,
    ),
    *WEBHOOKS,
)


def main() -> int:
    """Run the mutants, and print what became of each."""
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    targets = sorted({test for mutant in chosen for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="extract-mutants-") as folder:
        copy = Path(folder) / "project"
        _copied(copy)
        print(f"unchanged: {' '.join(targets)}", flush=True)
        if (found := _verdict(copy, targets, LIMIT * len(targets))).killer is not None:
            print(f"the tests fail without any mutant: {found.killer}")
            return 1
        print(f"unchanged: all pass ({found.seconds:.0f} s)\n\n{'law':<24}{'mutant':<62}{'seconds':>8}   noticed by")
        survivors = 0
        for mutant in chosen:
            found = _tried(copy, mutant)
            survivors += found.killer is None
            print(f"{mutant.law:<24}{mutant.name:<62}{found.seconds:8.0f}   {found.killer or 'SURVIVED'}", flush=True)
    print(f"\n{len(chosen)} mutants, {len(chosen) - survivors} noticed, {survivors} survived")
    return 1 if survivors else 0


def _copied(copy: Path) -> None:
    """What git knows of, as it stands now."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    for name in names:
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, copy / name)


def _tried(copy: Path, mutant: Mutant) -> Verdict:
    path = copy / PACKAGE / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: the line stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return _verdict(copy, mutant.tests, LIMIT)
    finally:
        path.write_text(text, encoding="utf-8")


def _verdict(copy: Path, tests: Sequence[str], limit: float) -> Verdict:
    """The first test that fails. One that never ends, or all of them in so many seconds, is a failure too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=no"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    done = subprocess.Popen(
        [*command, "--timeout=120", *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = done.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        done.kill()
        done.communicate()
        return Verdict("none: the tests do not end", time.monotonic() - began)
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Verdict(None, seconds)
    failed = [line for line in told.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Verdict(failed[0].split(" ", 1)[1].split(" - ")[0] if failed else told.strip().splitlines()[-1], seconds)


if __name__ == "__main__":
    sys.exit(main())
