"""What holds a secret does not show it: neither as text, nor pickled, nor in an error or a line of the log.

The same API that repeats each login is asked by tasks of a whole Airflow in the end-to-end tests. There Airflow's own
masking covers what ours misses; here it does not.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import DAG, TaskInstanceState

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.excerpt import excerpt, forms_of
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.page import Request
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.hooks.api import RestApiHook
from airflow_extract_provider.hooks.kafka import kafka_sink
from airflow_extract_provider.hooks.login import login_of
from airflow_extract_provider.hooks.store import StoreHook
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.failing import TaskFailed
from tests.e2e import left, planted
from tests.e2e.planted import DOINGS, MORE, Doing, Planted
from tests.taskrun import ApiServer, run_task

SOURCE = parse_source(planted.source(), "planted.yaml")
ODD = 'mark/&"<ä'
LOGINS = ("bearer", "alone", "pair", "header", "parameter", "refresh")


@pytest.fixture
def api() -> Iterator[Planted]:
    """The API that repeats logins, and the token endpoint."""
    with planted.planting() as found:
        yield found


@pytest.fixture
def airflow(api: Planted, dsn: str, connect: Connect) -> Iterator[ApiServer]:
    """An Airflow that knows the connections, and a store with tables."""
    migrate(connect, [SOURCE])
    with ApiServer(connections=_connections(api, planted.store_fields(dsn))).serving() as server:
        yield server


def _connections(api: Planted, store: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = {name: json.loads(text) for name, text in api.connections(store).items()}
    return {name: {**fields, "extra": json.dumps(fields.get("extra") or {})} for name, fields in found.items()}


def _told(api: Planted, **shown: Any) -> list[str]:
    """Where a mark or a token is in what is shown of some things."""
    pieces = [
        (f"{how} of {name}", text)
        for name, each in shown.items()
        for how, text in (("repr", repr(each).encode()), ("str", str(each).encode()), ("pickle", _pickled(each)))
    ]
    return left.found([planted.MARK, *api.tokens], pieces)


def _pickled(each: object) -> bytes:
    """Pickled, or why that is refused."""
    try:
        return pickle.dumps(each)
    except (TypeError, AttributeError, pickle.PicklingError) as exc:
        return repr(exc).encode()


@pytest.mark.parametrize("name", LOGINS)
def test_what_holds_a_login(name: str, api: Planted, airflow: ApiServer) -> None:
    """Hook, login, client and all that it is made of, before the first request and after it."""
    hook, store = RestApiHook(f"planted_{name}"), StoreHook(planted.STORE)
    login = login_of(hook.get_connection(f"planted_{name}"))
    if login.seed is None:
        hook.get_conn().close()
    with closing(hook.client(SOURCE, store=store.connect)) as client:
        parts = {"hook": hook, "login": login, "client": client, **_parts(client)}
        assert _told(api, **parts) == []
        reply = client.fetch(SOURCE.object("renewed"), Request("/renewed", {"limit": "2"}))
        with parts["auth"].admitted() as signer:
            assert _told(api, **parts, signer=signer, reply=reply) == []


def _parts(client: ApiClient) -> dict[str, Any]:
    """What a client is made of, the parts of its login included: whoever adds one adds it here."""
    found = {name: getattr(client, f"_{name}") for name in ("auth", "quota", "transport")}
    inner = found["auth"]
    return found | {
        f"auth.{name}": getattr(inner, name)
        for name in ("_login", "_signer", "_endpoint", "_tokens", "_known")
        if hasattr(inner, name)
    }


@pytest.mark.parametrize("doing", [*DOINGS, *MORE], ids=lambda doing: f"{doing.object}-{doing.connection}")
def test_what_a_task_tells(
    doing: Doing, api: Planted, airflow: ApiServer, caplog: pytest.LogCaptureFixture, pauses: list[float]
) -> None:
    """A task over each connection, whichever way it ends: its log, its error and what it sends to Airflow."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "airflow_extract_provider")
    operator = _operator(doing)
    outcome = run_task(operator, airflow)
    assert (outcome.state is TaskInstanceState.SUCCESS) == (doing.ends == "success"), caplog.text
    assert doing.told in f"{caplog.text} {outcome.error!r}"
    assert _told(api, operator=operator, log=caplog.text, events=outcome.events, sent=_sent(airflow)) == []
    assert _told(api, **_of_error(outcome.error)) == []


def _operator(doing: Doing) -> BackfillOperator:
    with DAG(planted.SOURCE, schedule=None):
        return BackfillOperator(
            task_id=doing.object,
            source=SOURCE,
            object=doing.object,
            store_conn_id=doing.store,
            api_conn_id=f"planted_{doing.connection}",
        )


def _sent(airflow: ApiServer) -> list[Any]:
    """What Airflow was told, but for what is to be masked: that is told as it is."""
    return [msg for msg in airflow.sent if type(msg).__name__ != "MaskSecret"]


def _of_error(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {}
    inner = error.error if isinstance(error, TaskFailed) else error
    assert isinstance(inner, ExtractError)
    return {"error": error, "inner": inner, "args": inner.args, "trace": traceback.format_exception(error)}


@pytest.mark.parametrize("link", ["http://me:{login}@other.example/", "/{login}/next", "/next#{login}"])
def test_a_link_that_holds_the_login(link: str, api: Planted, airflow: ApiServer, dsn: str) -> None:
    """Wherever it holds it, the login gets neither into the ledger nor into the cursor."""
    api.link = link
    run_task(_operator(Doing("elsewhere", "bearer", "")), airflow)
    assert _told(api, sent=_sent(airflow)) == []
    assert left.found([planted.MARK], left.columns("store", dsn)) == []


@pytest.mark.parametrize(
    "spelled",
    [
        json.dumps(ODD),
        json.dumps(ODD, ensure_ascii=False),
        ODD.replace("&", r"\u0026").replace("<", r"\u003c"),
        ODD.replace("&", "&#38;").replace("<", "&#60;"),
        quote(ODD, safe="").replace("%2F", "%2f").replace("%C3%A4", "%c3%a4"),
        base64.b64encode(ODD.encode()).decode(),
    ],
)
def test_a_secret_that_is_spelled_otherwise(spelled: str) -> None:
    """An API repeats it as JSON, HTML or a URL write it; in each way it is blotted out."""
    assert excerpt(f"bad {spelled.strip(chr(34))} !".encode(), forms_of(ODD)) == '"bad *** !"'


def test_the_hook_of_the_store(api: Planted, airflow: ApiServer) -> None:
    """It shows no password once it has been used; pickled, it is its connection's id."""
    hook = StoreHook(planted.STORE)
    hook.connect().close()
    assert _told(api, hook=hook) == []
    pickle.loads(pickle.dumps(hook)).connect().close()


@pytest.mark.parametrize("kind", ["transport", "sink"])
def test_what_is_not_pickled(kind: str, api: Planted, airflow: ApiServer) -> None:
    """What sends requests or events is refused to pickle, as a login is."""
    fields = json.loads(airflow.connections["planted_kafka"]["extra"])
    airflow.connections["planted_kafka"] = {"conn_type": "kafka", "extra": json.dumps({**fields, "acks": "all"})}
    with (
        closing(kafka_sink("planted_kafka", "topic")) as sink,
        closing(RestApiHook("planted_bearer").client(SOURCE)) as client,
    ):
        each = sink if kind == "sink" else _parts(client)["transport"]
        assert planted.MARK.encode() not in _pickled(each)
