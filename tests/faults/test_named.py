"""What goes wrong between client and API is handled exactly, or told by a named error of a few lines; the run after the
repair is exact. docs/faults.md has a row for each, with the message as it is.

Among them: 403, a redirect to another host, a wrong content type, a gzip header on a plain body, JSON that breaks off
on page 2, a page size above the server's cap, DNS, and TLS.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import get_args

import pytest

from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import Kind
from tests.faults.table import BEGIN, DOCUMENT, END, table
from tests.faults.troubles import TROUBLES, Played, Trouble, played

Play = Callable[[Trouble], Played]


@pytest.fixture(scope="module")
def play(store: Connect) -> Play:
    """Plays each trouble once: the table shows what the tests have seen."""
    results: dict[str, Played] = {}

    def once(trouble: Trouble) -> Played:
        if trouble.name not in results:
            results[trouble.name] = played(trouble, store)
        return results[trouble.name]

    return once


@pytest.mark.parametrize("trouble", TROUBLES, ids=[trouble.name for trouble in TROUBLES])
def test_exact_or_named(trouble: Trouble, play: Play) -> None:
    """It ends as it must, and after the repair nothing is missing, too many or other than at the API."""
    result = play(trouble)
    assert type(result.error) is (trouble.ends or type(None)), result.error
    assert result.wrong == (0, 0)
    if result.error is not None:
        _check_telling(result.error)


def _check_telling(error: ExtractError) -> None:
    """A few lines: what, where, what was kept, what to do, where to read on; no address, token or parameter."""
    lines = str(error).splitlines()
    assert len(lines) <= 5
    assert max(map(len, lines)) < 300
    assert error.kept
    assert error.todo
    assert error.page is not None
    assert lines[-1].endswith(f"docs/errors.md#{type(error).anchor}")
    assert not [sign for sign in ("127.0.0.1", "cursor=", "limit=", "Traceback", "urllib3") if sign in str(error)]
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.place) == (type(error), str(error), error.place)


def test_every_kind_of_fault_is_among_them() -> None:
    """Each kind that a HostileApi has stands in the table under its name; no name stands there twice."""
    names = Counter(trouble.name for trouble in TROUBLES)
    assert [name for name, count in names.items() if count > 1] == []
    assert set(get_args(Kind)) - set(names) == set()


def test_the_document_has_the_table(play: Play) -> None:
    """docs/faults.md holds what the client does and says now."""
    written = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table(play(trouble) for trouble in TROUBLES), "run `python -m tests.faults.table --write`"
