"""`airflow extract check`, `plan` and `lint`, through Airflow's own parser, on real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli import cli_parser
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import Fault, HostileApi, Listing
from airflow_extract_provider.testing.login import LoginServer
from airflow_extract_provider.testing.postgres import free_port
from tests.extract.looking import FIRST, TOKENS

_LOGGED = re.compile(r"\d{4}-\d\d-\d\dT\S+ \[\w+ *\]")
"""A line of the log, which Airflow shows beside what the command tells."""
SECRET = "marked-secret-4711"
LISTINGS = {
    "/things": Listing("token", ("updated_at", "id"), filter="inclusive", size_param="limit", total=True),
    "/capped": Listing("token", ("updated_at", "id"), size_param="limit", page_max=7),
    "/links": Listing("header_token", ("updated_at", "id"), size_param="limit"),
    "/falling": Listing("token", ("-updated_at",), size_param="limit"),
}
OBJECTS: Mapping[str, Mapping[str, Any]] = {
    "things": {**TOKENS, "total": "total", "sweep": {"every": "7d"}},
    "listless": {**TOKENS, "records": "items"},
    "keyless": {**TOKENS, "key": "uuid", "order": ["updated_at"]},
    "unordered": {**TOKENS, "path": "/falling"},
    "capped": {**TOKENS, "path": "/capped"},
    "links": {**TOKENS, "path": "/links", "pages": {"by": "token", "header": "Next-Token", "send": "cursor"}},
}


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HostileApi]:
    """An API with forty records, its connection with a secret, and a source with an object for each trouble."""
    with HostileApi(seed=1, listings=LISTINGS) as api:
        for number in range(40):
            api.insert(1, at=FIRST + timedelta(seconds=number))
        connected(monkeypatch, api.url)
        written(tmp_path, OBJECTS)
        yield api


def connected(monkeypatch: pytest.MonkeyPatch, url: str, name: str = "shop") -> None:
    """Airflow knows the connection of a source."""
    known = {"conn_type": "rest_api", "host": url, "password": SECRET, "extra": {"connect_timeout": 2, "timeout": 2}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}_API", json.dumps(known))


def written(folder: Path, objects: Mapping[str, Any], name: str = "shop", **more: Any) -> None:
    """A source file in a folder."""
    source = {"source": name, "connection": f"{name}_api", "objects": objects, **more}
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(source)), sort_keys=False), encoding="utf-8"
    )


@pytest.fixture
def extract(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """Runs a command; gives its code and its lines, in which no secret stands."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        args = cli_parser.get_parser().parse_args(["extract", *arguments])
        code = 0
        try:
            args.func(args)
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        assert SECRET not in told.out + told.err
        assert "Traceback" not in told.err
        lines = (told.out + told.err).splitlines()
        return code, [line for line in lines if not _LOGGED.match(line)]

    return run


DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "checks.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```\n\$ airflow extract ([^\n]*)\n(.*?)```", DOCUMENT, flags=re.DOTALL)


@pytest.mark.parametrize(("command", "answer"), SHOWN, ids=[command for command, _ in SHOWN])
def test_what_the_docs_show_is_what_is_told(
    command: str, answer: str, monkeypatch: pytest.MonkeyPatch, extract: Any, tmp_path: Path
) -> None:
    """Of the file that docs/checks.md shows, over an API with 4,212 records."""
    (file,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    (tmp_path / "crm.yaml").write_text(file, encoding="utf-8")
    listings = {
        "/v1/contacts": Listing("token", ("updated_at", "id"), filter="inclusive", total=True, size_param="limit"),
        "/v1/notes": Listing("page", page_max=50),
        "/v1/deals": Listing("link_header", ("updated_at",), filter="inclusive"),
    }
    with HostileApi(seed=1, listings=listings) as api:
        api.insert(4200)
        api.bulk_import(12, at=FIRST)
        connected(monkeypatch, api.url, "crm")
        _, lines = extract(*command.split(), "--sources", str(tmp_path))
    assert "\n".join(lines) == answer.strip()


# check ----------------------------------------------------------------------------------------------------------------


def test_check_tells_each_object_and_goes_on(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """One request each; what is wrong by its error, on one line, and the others all the same."""
    code, lines = extract("check", "shop", "--sources", str(tmp_path))
    assert code == 1
    assert shop.count == len(OBJECTS)
    told = dict(line.split(None, 1) for line in lines if not line.startswith(" "))
    assert told["things"] == (
        "reachable, 10 records, key and version found, ascending by updated_at, then id, each has an instant of its "
        "own: ok"
    )
    assert told["listless"].startswith("RecordsPathError: `items` is not in the answer")
    assert told["listless"].endswith("docs/errors.md#records-path")
    assert told["keyless"].startswith("BadRecordError: ")
    assert "uuid" in told["keyless"]
    assert told["unordered"].startswith("UnorderedStreamError: ")
    assert told["capped"].endswith(": 1 doubt")
    assert told["links"].endswith(": 1 doubt")
    assert [line.strip() for line in lines if line.startswith(" ")] == [
        "doubt: the API sends 7 records where 10 were asked for, though more follow -> set pages.size.max to 7, or "
        "correct pages.size.send",
        "doubt: the page is full (20 records), and the answer tells of no next one -> is pages.header (Next-Token) "
        "right?",
    ]


def test_check_of_some_objects(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """Doubts alone leave the code 0; a name that is none is said before anything is asked."""
    code, lines = extract("check", "shop", "--sources", str(tmp_path), "--object", "things", "capped")
    assert (code, len(lines), shop.count) == (0, 3, 2)
    code, lines = extract("check", "shop", "--sources", str(tmp_path), "--object", "things", "--object", "nothing")
    assert (code, shop.count) == (1, 2)
    assert "there is no object 'nothing'" in lines[0]


def test_check_deep_asks_by_since_and_by_key(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """An API that ignores the filter is found so."""
    code, lines = extract("check", "shop", "--sources", str(tmp_path), "--object", "things", "capped", "--deep")
    assert (code, shop.count) == (0, 6)
    assert lines[0].endswith("`since` filters, by key the same record: ok")
    assert any("the API ignores `since`: 6 of 7 records are older than was asked for" in line for line in lines)
    written(tmp_path, {"capped": {**OBJECTS["capped"], "by_key": {"path": "/nothing/{{ key }}"}}})
    code, (line,) = extract("check", "shop", "--sources", str(tmp_path), "--deep")
    assert code == 1
    assert "RequestRefusedError: asked by key for records that its own list holds, the API gives status 404" in line


def test_check_tells_of_a_refused_login(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """Of each object; what the API repeats of the secret is not shown."""
    shop.fault(1, "401", times=2)
    code, lines = extract("check", "shop", "--sources", str(tmp_path), "--object", "things", "capped")
    assert code == 1
    assert [line.split()[1] for line in lines] == ["LoginError:", "LoginError:"]


def test_check_says_what_the_limit_did_not_let_it_see(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """That is no failure of those objects, and no all-clear either: the code is 1."""
    good = {name: {**OBJECTS["things"], "table": name} for name in ("first", "next", "last")}
    written(tmp_path, good, limit="1/h")
    at = ("--sources", str(tmp_path))
    code, (first, *others) = extract("check", "shop", *at)
    assert (code, shop.count) == (1, 1)
    assert first.endswith(": ok")
    assert [line.split(None, 1)[0] for line in others] == ["next", "last"]
    for line in others:
        name = line.split()[0]
        assert re.fullmatch(
            rf"{name} +not looked at: the limit allows no request before \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC -> then: "
            rf"airflow extract check shop --object {name}",
            line,
        )
    assert extract("check", "shop", *at, "--object", "last")[0] == 0
    written(tmp_path, good, limit="3/h")
    assert extract("check", "shop", *at)[0] == 0


def test_check_deep_that_the_limit_ends(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """After the first request the object was looked at, but not to the end."""
    written(tmp_path, {"things": OBJECTS["things"]}, limit="2/h")
    code, (line,) = extract("check", "shop", "--deep", "--sources", str(tmp_path))
    assert (code, shop.count) == (1, 2)
    assert line.startswith("things  not looked at to the end: the limit allows no request before ")


def test_check_when_the_api_asks_for_a_pause(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """Its own limit is one, too: what it has refused was not looked at."""
    shop.fault(1, Fault("429", retry_after=3600))
    code, lines = extract("check", "shop", "--sources", str(tmp_path), "--object", "things", "capped")
    assert (code, shop.count) == (1, 1)
    assert [line.split(":")[0] for line in lines] == ["things  not looked at", "capped  not looked at"]


def test_check_of_an_api_that_is_not_there(monkeypatch: pytest.MonkeyPatch, extract: Any, tmp_path: Path) -> None:
    """Two tries, and it is told."""
    written(tmp_path, {"things": OBJECTS["things"]})
    connected(monkeypatch, f"http://127.0.0.1:{free_port()}")
    code, (line,) = extract("check", "shop", "--sources", str(tmp_path))
    assert code == 1
    assert line.startswith("things  ApiUnavailableError: ")


def test_check_without_a_connection_tells_how_to_make_it(extract: Any, tmp_path: Path) -> None:
    """By the command that makes it."""
    written(tmp_path, {"things": OBJECTS["things"]})
    code, lines = extract("check", "shop", "--sources", str(tmp_path))
    assert code == 1
    assert "airflow connections add shop_api --conn-type rest_api" in "\n".join(lines)


@pytest.mark.parametrize("login", ["client_credentials", "refresh_token"])
def test_check_logs_in_by_tokens(
    login: str, dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, extract: Any, tmp_path: Path
) -> None:
    """A token that was spent is kept in the store that is named, and the next command goes on with it."""
    spec = {"path": "/l", "records": "data", "key": "id", "pages": {"by": "token", "take": "next", "send": "c"}}
    written(tmp_path, {"listed": spec})
    parts = conninfo_to_dict(dsn)
    store = {"conn_type": "postgres", "host": parts["host"], "login": parts["user"], "schema": parts["dbname"]}
    store |= {"password": parts.get("password"), "port": int(str(parts["port"])) if "port" in parts else None}
    monkeypatch.setenv("AIRFLOW_CONN_KEPT", json.dumps(store))
    with LoginServer(client_secret=SECRET) as server:
        seed = server.log_in()
        extra = {"auth": login, "token_url": server.url}
        extra |= {"refresh_token": seed} if login == "refresh_token" else {}
        known = {"conn_type": "rest_api", "host": server.api_url, "login": "client", "password": SECRET, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SHOP_API", json.dumps(known))
        for _ in range(2):
            code, lines = extract("check", "shop", "--sources", str(tmp_path), "--conn-id", "kept")
            assert code == 0
            assert not [token for token in server.tokens if token in "".join(lines)]
        assert (server.uses, server.renewals) == (2, 1 if login == "refresh_token" else 2)
    with connect() as conn:
        found = conn.execute("select connection from extract.oauth_token").fetchall()
    assert found == ([("shop_api",)] if login == "refresh_token" else [])


def test_the_folder_is_beside_the_dag_files(
    shop: HostileApi, monkeypatch: pytest.MonkeyPatch, extract: Any, tmp_path: Path
) -> None:
    """Without `--sources`."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "shop.yaml").rename(tmp_path / "sources" / "shop.yaml")
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(tmp_path))
    assert extract("check", "shop", "--object", "things")[0] == 0


# plan -----------------------------------------------------------------------------------------------------------------


def test_plan_asks_nobody(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """All objects, without a request."""
    code, lines = extract("plan", "shop", "--sources", str(tmp_path))
    assert (code, shop.count) == (0, 0)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(OBJECTS)
    assert sum("incremental" in line for line in lines) == len(OBJECTS)


def test_plan_asks_when_it_is_told_to(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """Then it tells what it takes, and which objects could not be asked."""
    written(tmp_path, {name: OBJECTS[name] for name in ("things", "listless")}, limit="2/s")
    code, lines = extract("plan", "shop", "--sources", str(tmp_path), "--ask")
    assert (code, shop.count) == (1, 2)
    assert "requests     about 4 for 40 records (total from the API), 1.5 s or more at 2/s" in "\n".join(lines)
    assert lines[-1].startswith("listless: RecordsPathError: ")


def test_plan_says_what_the_limit_did_not_let_it_ask(shop: HostileApi, extract: Any, tmp_path: Path) -> None:
    """The plan stands; what it takes is told of the others."""
    written(tmp_path, {name: {**OBJECTS["things"], "table": name} for name in ("first", "next")}, limit="1/h")
    code, lines = extract("plan", "shop", "--sources", str(tmp_path), "--ask")
    assert (code, shop.count) == (1, 1)
    assert sum(" requests " in line for line in lines) == 1
    assert re.match(
        r"next: not looked at: the limit allows no request before .* UTC -> then: airflow extract ", lines[-1]
    )


# lint -----------------------------------------------------------------------------------------------------------------


def test_lint_tells_of_all_files(extract: Any, tmp_path: Path) -> None:
    """Each wrong one, and the advice on the others."""
    written(tmp_path, {"things": {**TOKENS, "by_key": None}})
    (tmp_path / "one.yaml").write_text("source: one\nconnexion: x\n")
    (tmp_path / "two.yml").write_text("source: [")
    code, lines = extract("lint", "--sources", str(tmp_path))
    assert code == 1
    assert [line.split(":")[0] for line in lines[:2]] == ["SourceError", "SourceError"]
    assert "one.yaml" in lines[0]
    assert "two.yml" in lines[1]
    assert [line.split()[:2] for line in lines[2:-1]] == [
        ["shop/things", "deletes-unseen"],
        ["shop/things", "undecided-stay"],
    ]
    assert lines[-1] == "2 files wrong, 2 pieces of advice: docs/checks.md#advice"


def test_lint_is_content(extract: Any, tmp_path: Path) -> None:
    """With code 0."""
    written(tmp_path, {"things": OBJECTS["things"]})
    assert extract("lint", "--sources", str(tmp_path)) == (0, ["1 source: nothing to say."])


@pytest.mark.parametrize("scope", ["", ":shop", ":shop/things"])
def test_what_is_accepted_is_not_told(extract: Any, tmp_path: Path, scope: str) -> None:
    """Everywhere, of a source or of an object; of another one it is."""
    written(tmp_path, {"things": {**OBJECTS["things"], "by_key": None}})
    at = ("--sources", str(tmp_path))
    assert extract("lint", *at)[0] == 1
    assert extract("lint", *at, "--accept", f"deletes-unconfirmed{scope}")[0] == 0
    assert extract("lint", *at, "--accept", f"deletes-unconfirmed{scope or ':shop'}x")[0] == 1


def test_advice_of_no_such_name_cannot_be_accepted(extract: Any, tmp_path: Path) -> None:
    """A misspelt one would be accepted for ever."""
    written(tmp_path, {"things": OBJECTS["things"]})
    code, lines = extract("lint", "--sources", str(tmp_path), "--accept", "deletes-uncomfirmed")
    assert code == 1
    assert "there is no advice 'deletes-uncomfirmed'" in lines[0]


def test_lint_sees_what_two_files_do_together(extract: Any, tmp_path: Path) -> None:
    """Each alone is right; they share a table. A folder without files is said, too."""
    shared = {"things": {**OBJECTS["things"], "schema": "both", "table": "same"}}
    written(tmp_path, shared, "one")
    written(tmp_path, shared, "two")
    code, lines = extract("lint", "--sources", str(tmp_path))
    assert code == 1
    assert "share the table both.same" in "\n".join(lines)
    (tmp_path / "empty").mkdir()
    code, lines = extract("lint", "--sources", str(tmp_path / "empty"))
    assert code == 1
    assert "holds no source file" in lines[0]
