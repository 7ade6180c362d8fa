"""What `make mutants` breaks is there to be broken, and so are the tests that must notice."""

from __future__ import annotations

import pytest

from tests.mutant import Mutant
from tests.mutants import MUTANTS, PACKAGE, PROJECT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_of_this_code(mutant: Mutant) -> None:
    """Its line stands once in its file: otherwise it would be left behind without a word."""
    assert (PROJECT / PACKAGE / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert [each for each in mutant.tests if not (PROJECT / each).exists()] == []
