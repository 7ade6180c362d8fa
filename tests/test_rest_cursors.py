"""Cursors through Airflow's REST API: an absence is proven, everything else is an error; no secret is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import CursorShadowedError, CursorUnreadableError
from airflow_extract_provider.rest_cursors import ApiLogin, RestCursors, login_from
from tests.variables_api import VariablesApi

KEY = "extract_shop_things_backfill_cursor"
TEXT = '{\n  "sequence": 7,\n  "place": {"by": "last_key", "after": "ü"}\n}'


@pytest.fixture
def variables() -> Iterator[VariablesApi]:
    """Airflow's API."""
    with VariablesApi() as served:
        yield served


@pytest.fixture
def cursors(variables: VariablesApi) -> RestCursors:
    """Cursors behind it."""
    return RestCursors(variables.url, ApiLogin(variables.token))


def test_there_and_back(variables: VariablesApi, cursors: RestCursors) -> None:
    """Absent, written, written again, read, deleted, deleted again; the text is stored as it was given."""
    assert cursors.read(KEY) is None
    for text in (TEXT, TEXT.replace("7", "8")):
        cursors.write(KEY, text)
        assert variables.values == {KEY: text}
    assert cursors.read(KEY) == '{"sequence": 8, "place": {"by": "last_key", "after": "\\u00fc"}}'
    for _ in range(2):
        cursors.delete(KEY)
        assert cursors.read(KEY) is None


def test_a_login_by_name_and_password(variables: VariablesApi) -> None:
    """One token is asked for, once."""
    given = {"AIRFLOW_EXTRACT_API_USERNAME": variables.username, "AIRFLOW_EXTRACT_API_PASSWORD": variables.password}
    cursors = RestCursors(f"{variables.url}/", login_from(given))
    assert cursors.read(KEY) is None
    assert cursors.read(KEY) is None
    assert [path for _, path, _ in variables.asked].count("/auth/token") == 1


LISTED = {"variables": [{"key": KEY, "value": "x"}]}
NOT_FOUND = {"detail": f"The Variable with key: `{KEY}` was not found"}
ANSWERS: dict[str, dict[str, tuple[int, Any]]] = {
    "a server that fails": {"GET": (500, {"detail": "x"})},
    "a busy server": {"GET": (503, "")},
    "no rights": {"GET": (403, {"detail": "Forbidden"})},
    "no login": {"GET": (401, {"detail": "Not authenticated"})},
    "a proxy's 404": {"GET": (404, "<html>not found</html>")},
    "another API's 404": {"GET": (404, {"detail": "Not Found"})},
    "another API's 200": {"GET": (200, {"hello": "world"})},
    "HTML": {"GET": (200, "<html>log in</html>")},
    "no value": {"GET": (200, {"key": KEY, "value": None})},
    "another Variable": {"GET": (200, {"key": "other", "value": "x"})},
    "not found, but the list fails": {"GET": (404, NOT_FOUND), "LIST": (500, "")},
    "not found, but listed": {"GET": (404, NOT_FOUND), "LIST": (200, LISTED)},
    "not found, but the list is none": {"GET": (404, NOT_FOUND), "LIST": (200, {})},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_proves_nothing(name: str, variables: VariablesApi, cursors: RestCursors) -> None:
    """None of these is an absence, for reading or for deleting."""
    ordered = ANSWERS[name]
    variables.fault = lambda method, path: ordered.get("LIST" if path.endswith("/variables") else method)
    with pytest.raises(CursorUnreadableError) as caught:
        cursors.read(KEY)
    assert KEY in str(caught.value)
    with pytest.raises(CursorUnreadableError):
        cursors.delete(KEY)


@pytest.mark.parametrize("method", ["PATCH", "POST", "DELETE"])
@pytest.mark.parametrize("status", [403, 409, 500])
def test_what_is_not_written(method: str, status: int, variables: VariablesApi, cursors: RestCursors) -> None:
    """Whatever is refused is told, and nothing is changed."""
    if method != "POST":
        variables.values[KEY] = "before"
    before = dict(variables.values)
    variables.fault = lambda asked, path: (status, {"detail": "no"}) if asked == method else None
    with pytest.raises(CursorUnreadableError):
        cursors.delete(KEY) if method == "DELETE" else cursors.write(KEY, TEXT)
    assert variables.values == before


def test_written_and_not_there(variables: VariablesApi, cursors: RestCursors) -> None:
    """An API that says yes and stores something else is found out."""
    variables.values[KEY] = "before"
    variables.fault = lambda method, path: (200, {}) if method == "PATCH" else None
    with pytest.raises(CursorUnreadableError, match="not read back"):
        cursors.write(KEY, TEXT)
    variables.fault = lambda method, path: (204, None) if method == "DELETE" else None
    with pytest.raises(CursorUnreadableError, match="still there"):
        cursors.delete(KEY)


def test_a_masked_value(variables: VariablesApi, cursors: RestCursors) -> None:
    """Airflow shows stars for Variables with telling names: they are no cursor, and nothing is written over them."""
    variables.values[KEY], variables.masked = TEXT, {KEY}
    with pytest.raises(CursorUnreadableError, match="masks it"):
        cursors.read(KEY)


def test_hidden_by_the_environment(
    variables: VariablesApi, cursors: RestCursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task would read is another value; nothing is asked."""
    monkeypatch.setenv(f"AIRFLOW_VAR_{KEY.upper()}", "x")
    works: list[Callable[[], object]]
    works = [lambda: cursors.read(KEY), lambda: cursors.write(KEY, TEXT), lambda: cursors.delete(KEY)]
    for work in works:
        with pytest.raises(CursorShadowedError, match="AIRFLOW_VAR_"):
            work()
    assert variables.values == {}


def test_hidden_by_a_secrets_backend(
    variables: VariablesApi, cursors: RestCursors, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is what a secrets backend of Airflow's holds under that name; one that fails proves nothing."""
    from airflow import configuration

    file = tmp_path / "variables.json"
    file.write_text(f'{{"{KEY}": "x"}}')
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", "airflow.secrets.local_filesystem.LocalFilesystemBackend")
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND_KWARGS", f'{{"variables_file_path": "{file}"}}')
    backends = configuration.initialize_secrets_backends()
    monkeypatch.setattr(configuration, "secrets_backend_list", backends)
    with pytest.raises(CursorShadowedError, match="LocalFilesystemBackend"):
        cursors.read(KEY)
    assert cursors.read("another") is None
    file.unlink()
    with pytest.raises(CursorUnreadableError, match="LocalFilesystemBackend does not answer"):
        cursors.read("another")


def test_the_login_is_not_carried_away(variables: VariablesApi) -> None:
    """A redirect is not followed, and no message or repr holds the token, the name or the password."""
    with VariablesApi() as elsewhere:
        variables.fault = lambda method, path: (302, f"{elsewhere.url}/api/v2/variables/{KEY}")
        for login in (ApiLogin(variables.token), ApiLogin(None, variables.username, variables.password)):
            cursors = RestCursors(variables.url, login)
            with pytest.raises(CursorUnreadableError) as caught:
                cursors.read(KEY)
            for secret in (variables.token, variables.password):
                assert secret not in f"{caught.value!r} {caught.value} {cursors!r} {login!r}"
        assert elsewhere.asked == []


def test_the_login_of_a_netrc(variables: VariablesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces neither the token nor the name and password: it is for other programs."""
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login joe password marked\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    for login in (ApiLogin(variables.token), ApiLogin(None, variables.username, variables.password)):
        assert RestCursors(variables.url, login).read(KEY) is None
    assert {told for _, _, told in variables.asked} == {None, f"Bearer {variables.token}"}


@pytest.mark.parametrize(
    ("login", "told"),
    [(ApiLogin(), "AIRFLOW_EXTRACT_API_TOKEN"), (ApiLogin(None, "ada", "wrong"), "401"), (ApiLogin("wrong"), "401")],
)
def test_wrong_logins(variables: VariablesApi, login: ApiLogin, told: str) -> None:
    """Named, with what to set."""
    with pytest.raises(CursorUnreadableError, match=told):
        RestCursors(variables.url, login).read(KEY)


def test_nobody_there(variables: VariablesApi) -> None:
    """No answer is no absence."""
    with VariablesApi() as gone:
        url = gone.url
    for address in (url, "http://", "http://ü\x00"):
        with pytest.raises(CursorUnreadableError, match="does not answer"):
            RestCursors(address, ApiLogin("x")).read(KEY)
