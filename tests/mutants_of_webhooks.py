"""What of webhooks is broken by :mod:`tests.mutants`, one line at a time."""

from __future__ import annotations

from tests.mutant import Mutant

__all__ = ["WEBHOOKS"]

_DRAIN = ("tests/webhooks/test_drain.py",)
_STREAM = ("tests/webhooks/test_drain.py", "tests/webhooks/test_stream.py", "tests/properties/test_webhooks.py")
_FOLDS = ("tests/webhooks/test_folds.py",)
_RULES = ("tests/webhooks/test_rules.py",)
_KILLED = ("tests/webhooks/test_killed.py",)
_AUDIT = ("tests/webhooks/test_audit.py", "tests/webhooks/test_stream.py")
_SIGNED = ("tests/webhooks/test_signatures.py", "tests/webhooks/test_signature_parts.py")
_RECEIVED = ("tests/webhooks/test_receiver.py", "tests/webhooks/test_keeping.py", "tests/webhooks/test_protocol.py")

WEBHOOKS: tuple[Mutant, ...] = (
    Mutant(
        "8 newer wins",
        "a webhook with an equal version is written",
        "store/judge.py",
        "    if known and coming.version > stored.version:  # type: ignore[operator]\n"
        '        return "delete" if coming.deleted else "write"\n'
        "    older",
        "    if known and coming.version >= stored.version:  # type: ignore[operator]\n"
        '        return "delete" if coming.deleted else "write"\n'
        "    older",
        _STREAM,
    ),
    Mutant(
        "8 newer wins",
        "a webhook brings a deleted record back",
        "store/judge.py",
        '        return "unchanged" if coming.deleted else "refetch"\n    known',
        '        return "unchanged" if coming.deleted else "undelete"\n    known',
        _STREAM,
    ),
    Mutant(
        "11 deletes",
        "a webhook's deletion is believed without a newer version",
        "store/judge.py",
        '    if coming.deleted and not coming.final:\n        return "refetch"\n',
        "",
        _STREAM,
    ),
    Mutant(
        "11 deletes",
        "an old deletion that nobody can ask about is believed",
        "store/judge.py",
        '        return "stale" if older or (before and not known) else "delete"\n',
        '        return "delete"\n',
        _DRAIN,
    ),
    Mutant(
        "8 newer wins",
        "another value of an equal version is no news",
        "store/rows.py",
        "record.version == version and self._agrees(record, row)",
        "record.version == version",
        _DRAIN,
    ),
    Mutant(
        "15 needs noted",
        "a webhook that decides nothing is forgotten",
        "store/told.py",
        "(*each.again, *each.undecided)",
        "(*each.again,)",
        _STREAM,
    ),
    Mutant(
        "15 needs noted",
        "a thin webhook is forgotten",
        "store/told.py",
        "(*each.again, *each.undecided)",
        "(*each.undecided,)",
        _DRAIN,
    ),
    Mutant(
        "13 nothing dropped",
        "what could not be applied is not parked",
        "webhooks/turn.py",
        "        self.claims.park(list(self._parked.values()))\n",
        "",
        _KILLED,
    ),
    Mutant(
        "13 nothing dropped",
        "a poison message undoes its neighbours",
        "webhooks/turn.py",
        "                if len(part) > 1:\n                    parts +=",
        "                if len(part) > 9:\n                    parts +=",
        _KILLED,
    ),
    Mutant(
        "8 newer wins",
        "a message overtakes an older one of its key",
        "webhooks/turn.py",
        "        self._blocked = self.claims.blocked(keys) if keys else set()\n",
        "        self._blocked = set()\n",
        _KILLED,
    ),
    Mutant(
        "10 once per change",
        "a message that comes again is passed on again",
        "webhooks/turn.py",
        "                if each.id not in new:\n",
        "                if False:\n",
        _DRAIN,
    ),
    Mutant(
        "1 no skip",
        "what tells of an object before its backfill is stored",
        "webhooks/turn.py",
        'each.does != "nothing" and not standing[each.object][0]}\n',
        "False}\n",
        _DRAIN,
    ),
    Mutant(
        "1 no skip",
        "a webhook begins an emptied table",
        "webhooks/fitting.py",
        "        check_filled(claims.conn, claims.schema, source, object)\n",
        "        pass\n",
        _DRAIN,
    ),
    Mutant(
        "10 once per change",
        "what has failed is passed on all the same",
        "webhooks/turn.py",
        "if each.forward and each.at not in self._parked], self._forward)",
        "if each.forward], self._forward)",
        _DRAIN,
    ),
    Mutant(
        "8 newer wins",
        "several versions in one batch are one change",
        "store/told.py",
        "sorted(copies, key=_age)",
        "sorted(copies, key=_age)[-1:]",
        _DRAIN,
    ),
    Mutant(
        "audit",
        "a webhook of another version counts as that of the change",
        "store/brought.sql",
        "else known.version = given.version end",
        "else true end",
        _AUDIT,
    ),
    Mutant(
        "audit",
        "a webhook that came before the poll is forgotten",
        "store/refetch.sql",
        "        told_at = coalesce(noted.told_at, excluded.told_at)",
        "        told_at = excluded.told_at",
        _AUDIT,
    ),
    Mutant(
        "forged",
        "a lost connection is the end of a body",
        "webhooks/receiver.py",
        "            return _CUT\n        finally:\n",
        '            return b"".join(parts)\n        finally:\n',
        _RECEIVED,
    ),
    Mutant(
        "forged",
        "trailers are headers",
        "webhooks/protocol.py",
        "        if self._phase == _HEAD:\n            # As uvicorn",
        "        if True:\n            # As uvicorn",
        _RECEIVED,
    ),
    Mutant(
        "nothing lost",
        "another body under a known delivery id is a duplicate",
        "webhooks/receiver.py",
        "        digest.update(body)\n",
        "",
        _RECEIVED,
    ),
    Mutant(
        "8 newer wins",
        "webhooks are folded in the order of their keys",
        "webhooks/bringing.py",
        "        deleted=record.deleted,\n        turn=turn,\n",
        "        deleted=record.deleted,\n",
        _FOLDS,
    ),
    Mutant(
        "8 newer wins",
        "an older copy that came later is folded last",
        "store/told.py",
        "            turn = max(turn, each.turn)\n",
        "            turn = each.turn\n",
        _FOLDS,
    ),
    Mutant(
        "8 newer wins",
        "parts are folded in the order of their keys",
        "webhooks/bringing.py",
        "        if self.target.folds:\n            return sorted(messages, key=lambda each: each.at)\n",
        "",
        _FOLDS,
    ),
    Mutant(
        "4 events",
        "published before Postgres has checked its rules",
        "store/apply.py",
        "        check_rules(work.conn)\n",
        "",
        _RULES,
    ),
    Mutant(
        "12 one bad message",
        "a rule that is checked at the end stops the source",
        "webhooks/drain.py",
        "        return self._batch(endpoint, at_once=True)\n",
        "        return self._batch(endpoint, at_once=False)\n",
        _RULES,
    ),
    Mutant(
        "12 one bad message",
        "a trigger's own code stops the source",
        "store/storable.py",
        'exc.sqlstate.startswith("P0") or not _is_known(exc.sqlstate)',
        'exc.sqlstate.startswith("P0")',
        _RULES,
    ),
    Mutant(
        "1 no skip",
        "what a trigger swallows counts as stored",
        "store/rows.py",
        "        raise _kept_out(kept_out[0])\n",
        "        revisions |= {each.key: 0 for each in kept_out}\n",
        _RULES,
    ),
    Mutant(
        "12 one bad message",
        "a table that is missing stops other objects",
        "webhooks/fitting.py",
        "            found[name] = exc.at(object=name)\n",
        "            raise exc.at(object=name) from None\n",
        _DRAIN,
    ),
    Mutant(
        "15 who notes strikes",
        "a sweep strikes a webhook's note",
        "store/sweep.sql",
        "key = any(%(keys)b::text[]) and reason = 'absent'\n  and told_at is null;",
        "key = any(%(keys)b::text[]) and reason = 'absent';",
        ("tests/store/test_sweep_told.py",),
    ),
)
