"""Advice: what is legal in a source file, but dangerous. Each has its name, and each name its row in the docs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from airflow_extract_provider.extract.api_object import AdviceName
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.lint import ADVICE, lint
from airflow_extract_provider.extract.sourcefile import load_sources, parse_source, presets
from tests.extract.looking import TOKENS, shop
from tests.hazards.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
GOOD: Mapping[str, Any] = {**TOKENS, "sweep": {"every": "7d"}}
"""An object of which there is nothing to say."""
_NEWEST = {"order": ["-updated_at"], "since": None}
_BARE = {"since": None, "version": None, "order": None}
_NUMBERS = {"by": "page", "send": "page"}
_SIZED = {**_NUMBERS, "size": {"send": "limit", "max": 10}}
_KEYED = {"by": "last_key", "send": "after"}


def advised(spec: Mapping[str, Any], requests: int | None = None, **source: Any) -> set[str]:
    """The names of the advice on an object; None in its spec leaves a key out."""
    found = {name: value for name, value in spec.items() if value is not None}
    return {each.name for each in lint(shop(found, **source), {} if requests is None else {"things": requests})}


def test_nothing_is_said_of_a_good_one() -> None:
    """Order, filter, sweep and reads by key: all is seen, and confirmed."""
    assert advised(GOOD) == set()


CASES = [
    ("deletes-unseen", {"sweep": None}, {"deleted": "deleted"}),
    ("changes-unseen", {**_BARE, "sweep": None}, {"sweep": {"every": "1d"}}),
    ("deletes-withheld", {**_NEWEST, "by_key": None}, {"by_key": TOKENS["by_key"]}),
    ("deletes-unconfirmed", {"by_key": None}, {"by_key": TOKENS["by_key"]}),
    ("passed-over", {"order": ["name"], "by_key": None}, {"order": ["created_at"]}),
    ("undecided-stay", {"by_key": None, "sweep": None, "deleted": "gone"}, {"by_key": TOKENS["by_key"]}),
    ("late-zero", {"late": "0s"}, {"late": "1s"}),
    ("read-twice", {**_BARE, "pages": _NUMBERS}, {"pages": {"by": "single"}}),
    ("read-twice", {**_BARE, "pages": {"by": "link_header"}}, {"pages": {"by": "link_header", "stable": True}}),
    ("ties-unsettled", {"order": ["created_at"], "pages": _SIZED}, {"order": ["created_at", "id"]}),
    ("overlap-by-version", {"pages": _KEYED}, {"order": ["created_at"]}),
    ("end-guessed", {"order": ["updated_at"], "pages": {"by": "since"}}, {"total": "total"}),
    ("start-late", {"since": {**TOKENS["since"], "start": "2024-01-01T00:00:00Z"}}, {"since": TOKENS["since"]}),
    ("guard-open", {"sweep": {"every": "1d", "max_deletes": "100%"}}, {"sweep": {"every": "1d", "max_deletes": "20%"}}),
    ("events-never", {"sweep": None, "events": ["created", "deleted"]}, {"events": ["created"]}),
    ("private-keys-shown", {"private": True, "hash": {"map": {"redis": "r"}}}, {"private": False}),
]


@pytest.mark.parametrize(("name", "wrong", "right"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_advice_is_given_and_goes(name: str, wrong: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Where it is due; and done as it says, or where it does not apply, it is not given."""
    assert name in advised({**GOOD, **wrong})
    assert name not in advised({**GOOD, **wrong, **right})


@pytest.mark.parametrize(
    ("every", "requests", "given"), [("1h", 100, True), ("5h", 100, False), ("1m", None, True), ("1h", None, False)]
)
def test_a_sweep_that_takes_longer_than_its_cadence(every: str, requests: int | None, given: bool) -> None:
    """By the number of requests, where a look has told it; two at least."""
    spec = {**GOOD, "sweep": {"every": every}}
    assert advised(spec, requests, limit="20/h" if requests else "1/2m") == ({"sweep-too-often"} if given else set())


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, wrong, _ in CASES])
def test_what_is_accepted_is_not_said(name: str, wrong: Mapping[str, Any]) -> None:
    """In the source file, by its name; all else is said as before."""
    spec = {**GOOD, **wrong}
    assert advised({**spec, "accept": [name]}) == advised(spec) - {name}


def test_a_sweep_too_often_is_accepted() -> None:
    """It is looked for apart."""
    spec = {**GOOD, "sweep": {"every": "1m"}, "accept": ["sweep-too-often"]}
    assert advised(spec, limit="1/2m") == set()


def test_a_misspelt_name_is_not_accepted() -> None:
    """It would be accepted for ever; the names that there are stand in the error."""
    file = {"source": "shop", "connection": "c", "objects": {"things": {**GOOD, "accept": ["deletes-uncomfirmed"]}}}
    with pytest.raises(SourceError, match=r"`objects\.things\.accept\.0`: .*'deletes-unconfirmed'"):
        parse_source(file, "shop.yaml")


@pytest.mark.parametrize("preset", presets())
def test_presets_accept_what_their_apis_do_not_have(preset: str) -> None:
    """Whoever extends one is told of nothing, but what he has changed himself."""
    assert lint(parse_source({"extends": preset}, preset)) == []


@pytest.mark.parametrize("preset", presets())
def test_presets_accept_nothing_else(preset: str) -> None:
    """What is accepted would be said."""
    source = parse_source({"extends": preset}, preset)
    accepted = {(name, each) for name, object in source.objects.items() for each in object.accept}
    bare = {name: object.model_copy(update={"accept": ()}) for name, object in source.objects.items()}
    told = lint(source.model_copy(update={"objects": bare}))
    assert {(each.object, each.name) for each in told} == accepted != set()


def test_a_file_may_name_all_advice() -> None:
    """What an object may accept is what there is."""
    assert sorted(get_args(AdviceName)) == sorted(ADVICE)


def test_every_advice_has_its_case() -> None:
    """None is untested."""
    assert {name for name, _, _ in CASES} | {"sweep-too-often", "shared-fold", "deletes-unsigned"} == set(ADVICE)
    assert len(set(ADVICE)) == len(ADVICE)


def test_every_advice_is_documented() -> None:
    """Each has a row in docs/checks.md, and no row is of something else."""
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "checks.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(ADVICE)


def test_advice_says_what_and_what_to_do() -> None:
    """Of every kind of pages, with its object."""
    for name, kind in KINDS.items():
        for advice in lint(shop(kind.described())):
            assert advice.object == "things", name
            assert advice.what, name
            assert advice.todo, name


def test_the_demos_sources_hold_no_mistake() -> None:
    """What is said of them is what their APIs do not have."""
    mistakes = {"changes-unseen", "deletes-unseen", "events-never", "guard-open", "start-late", "sweep-too-often"}
    sources = load_sources(ROOT / "demo" / "sources")
    assert mistakes & {advice.name for source in sources.values() for advice in lint(source)} == set()
    assert lint(sources["crm"]) == []


def test_accounts_that_share_a_fold() -> None:
    """Two accounts may have equal keys."""
    fold = {"table": "org", "where": {"customer": "id"}, "set": {"name": "name"}}
    spec = {
        "source": "crm",
        "accounts": {"eu": "crm_eu", "us": "crm_us"},
        "objects": {"things": {**GOOD, "fold": fold}},
    }
    assert "shared-fold" in {each.name for each in lint(parse_source(spec, "crm.yaml"))}
    alone = {**spec, "accounts": {}, "connection": "crm_api"}
    assert "shared-fold" not in {each.name for each in lint(parse_source(alone, "crm.yaml"))}


def test_a_header_that_nothing_signs_deletes() -> None:
    """Where nobody can be asked about it; a type that stands in the body is signed."""
    hook = {"verify": "github", "secret": "shop", "type": "{header:x-event}"}
    gone = {"gone": {"object": "things", "key": "id", "change": "deleted"}}
    without = {name: value for name, value in GOOD.items() if name != "by_key"}

    def said(spec: Mapping[str, Any], **hook: Any) -> bool:
        return "deletes-unsigned" in advised(spec, webhooks={"main": hook})

    assert said(without, **hook, types=gone)
    assert not said(GOOD, **hook, types=gone)
    assert not said(without, **{**hook, "type": "type"}, types=gone)
