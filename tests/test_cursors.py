"""Cursors in Variables: an error is never taken for an absence, and what hides a cursor is found."""

from __future__ import annotations

import pytest

from airflow_extract_provider.cursors import VariableCursors
from airflow_extract_provider.extract.errors import CursorShadowedError, CursorUnreadableError
from tests.taskrun import ApiServer

KEY = "extract_shop_orders_backfill_cursor"


def test_what_is_written_is_read() -> None:
    """A text comes back as it was, line breaks and all."""
    with ApiServer().serving() as server:
        VariableCursors().write(KEY, '{\n  "sequence": 1\n}')
        assert VariableCursors().read(KEY) == '{\n  "sequence": 1\n}'
    assert list(server.variables) == [KEY]


def test_an_absence_is_proven_by_the_list_of_keys() -> None:
    """None is the answer only when the keys could be listed and lack it; a longer key is another one."""
    with ApiServer({KEY + "_old": "x"}).serving() as server:
        assert VariableCursors().read(KEY) is None
    assert server.of("GetVariableKeys")


@pytest.mark.parametrize("down", [{"GetVariable"}, {"GetVariableKeys"}, {"GetVariable", "GetVariableKeys"}])
def test_a_failing_api_server_is_no_absence(down: set[str]) -> None:
    """Airflow calls a 500 "not found", and gives a default for it: that would start every walk over."""
    with (
        ApiServer({KEY: "marked-value"}, down=down).serving(),
        pytest.raises(CursorUnreadableError, match=KEY) as caught,
    ):
        VariableCursors().read(KEY)
    assert "marked-value" not in str(caught.value)


def test_outside_a_task_nothing_is_readable() -> None:
    """Without Airflow's supervisor, Airflow gives defaults and swallows what is set: refused."""
    with pytest.raises(CursorUnreadableError):
        VariableCursors().read(KEY)
    with pytest.raises(CursorUnreadableError):
        VariableCursors().write(KEY, "x")


def test_an_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats the stored Variable: the cursor would never move."""
    monkeypatch.setenv(f"AIRFLOW_VAR_{KEY.upper()}", "marked-value")
    with ApiServer({KEY: "stored"}).serving(), pytest.raises(CursorShadowedError) as caught:
        VariableCursors().read(KEY)
    assert f"AIRFLOW_VAR_{KEY.upper()}" in str(caught.value)
    assert "marked-value" not in str(caught.value)


def test_a_value_that_airflow_does_not_store_comes_from_elsewhere() -> None:
    """A secrets backend that knows the key is found before anything is read or written."""
    with ApiServer(shadow={KEY: "marked-value"}).serving(), pytest.raises(CursorShadowedError):
        VariableCursors().read(KEY)


def test_the_first_write_is_read_back() -> None:
    """What hides the Variable at the API server is found as soon as the cursor should move."""
    with ApiServer({KEY: "old"}, shadow={KEY: "old"}).serving() as server:
        cursors = VariableCursors()
        assert cursors.read(KEY) == "old"
        with pytest.raises(CursorShadowedError) as caught:
            cursors.write(KEY, "new")
    assert "old" not in str(caught.value).split()
    assert server.variables[KEY] == "new"


def test_later_writes_are_not_read_back() -> None:
    """One look per run: each costs a request."""
    with ApiServer().serving() as server:
        cursors = VariableCursors()
        for number in range(3):
            cursors.write(KEY, str(number))
    assert len(server.of("GetVariable")) == 1


@pytest.mark.parametrize("down", ["PutVariable", "GetVariable"])
def test_a_write_that_fails_is_told(down: str) -> None:
    """The engine then knows that the cursor does not show the position."""
    with ApiServer(down={down}).serving(), pytest.raises(CursorUnreadableError):
        VariableCursors().write(KEY, "x")
