"""Marked secrets in every place of a connection that can hold one, and an API that repeats whatever it is sent.

All secrets hold one mark of letters and digits, which no encoding but base64 changes: whoever finds neither the mark
nor its forms in base64 has found no form of any secret.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.login import LoginServer
from tests.loopback import Asked, Fault, LoopbackApi

MARK = "Qw7mark7Zx"
"""What each secret holds."""
WORD = "plainword8"
"""What is no secret, and stands beside the secrets wherever the API repeats them: it must be found."""
RECORDS = {f"{WORD}-{number}": {"id": f"{WORD}-{number}"} for number in range(6)}
SOURCE = "planted"
STORE = "planted_store"


@dataclass(frozen=True)
class Doing:
    """What a task does: read an object over a connection; how it ends, and what its log must tell."""

    object: str
    connection: str
    told: str
    ends: str = "failed"
    store: str = STORE


DOINGS = (
    Doing("copied", "parameter", "6 created", "success"),
    Doing("renewed", "refresh", "6 created", "success"),
    Doing("gateway", "bearer", "WrongAnswerError"),
    Doing("forbidden", "alone", "LoginError"),
    Doing("elsewhere", "pair", "RequestRefusedError"),
    Doing("moved", "header", "RequestRefusedError"),
    Doing("no_client", "client", "LoginError"),
    Doing("no_store", "bearer", "StoreUnavailableError", store="planted_no_store"),
    Doing("no_topic", "bearer", "SinkRefusedError"),
)
"""Every connection once; these are tasks of the DAG."""
MORE = (
    Doing("forbidden", "bearer", "LoginError"),
    Doing("broken", "pair", "ApiUnavailableError"),
    Doing("missing", "header", "RequestRefusedError"),
    Doing("moved", "parameter", "RequestRefusedError"),
    Doing("elsewhere", "bearer", "RequestRefusedError"),
    Doing("elsewhere", "parameter", "RequestRefusedError"),
    Doing("unknown_field", "unknown", "ConnectionMissingError"),
)
"""More ways to fail, for which no Airflow is needed."""


def secret(field: str) -> str:
    """The marked secret of a field, with characters that a URL must not hold."""
    return f"{MARK}/{field}+&="


class Planted:
    """The API, the token endpoint, and the connections to them."""

    def __init__(self, api: LoopbackApi, login: LoginServer) -> None:
        self.api, self.login = api, login
        self._first = login.log_in()
        self._asked: dict[str, int] = {}
        api.rows = [json.dumps(record).encode() for record in RECORDS.values()]
        self.link = "http://{login}:{login}@other.example/next?login={login}#{login}"
        """The next page's link of `elsewhere`."""
        api.fault = self._answered
        login.fault = self._token_refused

    @property
    def tokens(self) -> tuple[str, ...]:
        """All that the token endpoint has ever made; they hold no mark."""
        return tuple(self.login.tokens)

    def connections(self, store: Mapping[str, Any]) -> dict[str, str]:
        """Airflow's connections by id, as JSON. ``store`` are the fields of the one to the store."""
        port = urlsplit(self.api.url).port
        oauth = {"token_url": self.login.url, "token_parameters": {"assertion": secret("assertion")}}
        proxy = f"http://me:{quote(secret('proxy'), safe='')}@127.0.0.1:{port}"
        subscription = {"headers": {"X-Subscription": f"Token {secret('headers')}"}}
        found = {
            "bearer": self._rest("bearer", {**subscription, "proxies": proxy}),
            "alone": self._rest(None, {"auth": "basic"}, login=secret("alone")),
            "pair": self._rest("pair", {"auth": "basic"}, login="me"),
            "header": self._rest("header", {"auth": "header", "header_name": "X-Api-Key"}),
            "parameter": self._rest("parameter", {"auth": "parameter", "parameter_name": "api_key"}),
            "refresh": self._rest(
                "refresh", {"auth": "refresh_token", "refresh_token": self._first, **oauth}, login="client"
            ),
            "client": self._rest("client", {"auth": "client_credentials", **oauth}, login="client"),
            "unknown": self._rest("unknown", {"Authorization": f"Bearer {secret('unknown')}"}),
            # Where everybody may log in without one, a password goes unread.
            "store": {"conn_type": "postgres", "password": secret("store"), **store},
            "no_store": {"conn_type": "postgres", **store, "password": secret("no store"), "port": 1},
            "kafka": {
                "conn_type": "kafka",
                "extra": {"bootstrap.servers": "127.0.0.1:1", "sasl.password": secret("kafka"), "acks": secret("acks")},
            },
        }
        return {f"{SOURCE}_{name}": json.dumps(fields) for name, fields in found.items()}

    def _rest(self, password: str | None, extra: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
        given = {} if password is None else {"password": secret(password)}
        return {"conn_type": "rest_api", "host": self.api.url, **given, **fields, "extra": {**extra}}

    # -- the API -------------------------------------------------------------------------------------------------------

    def _answered(self, number: int, asked: Asked) -> Fault | None:
        object = asked.path.strip("/")
        self._asked[object] = count = self._asked.get(object, 0) + 1
        told = _repeated(asked)
        answer: Callable[[int, str, Asked], Fault | None] = getattr(self, f"_{object}", _right)
        return answer(count, told, asked)

    def _copied(self, count: int, told: str, asked: Asked) -> Fault | None:
        """Three hiccups, which the log tells of, and then pages whose links and headers repeat the key."""
        if count <= len(_HICCUPS):
            return _HICCUPS[count - 1](told)
        page = int(asked.params.get("page", "0"))
        key = quote(asked.params["api_key"], safe="")
        following = f"{self.api.url}/copied?api_key={key}&page={page + 1}&again={key}" if page < 2 else None
        records = [json.loads(row) for row in self.api.rows[2 * page : 2 * page + 2]]
        body = {"data": records, "next": following, "asked": {"key": asked.params["api_key"]}}
        return Fault(body=json.dumps(body).encode(), headers={"X-Key": asked.params["api_key"], "Link": f"<?k={key}>"})

    def _renewed(self, count: int, told: str, asked: Asked) -> Fault | None:
        """A token that does not last for the second page."""
        return _json(401, told) if count == 2 else None

    def _gateway(self, count: int, told: str, asked: Asked) -> Fault:
        return _html(told)

    def _forbidden(self, count: int, told: str, asked: Asked) -> Fault:
        return _json(403, told)

    def _broken(self, count: int, told: str, asked: Asked) -> Fault:
        return _json(500, told, {"Retry-After": "0", "X-RateLimit-Reset": secret("pair")})

    def _missing(self, count: int, told: str, asked: Asked) -> Fault:
        return _json(404, told)

    def _moved(self, count: int, told: str, asked: Asked) -> Fault:
        login = _login(asked)
        return Fault(302, told.encode(), {"Location": f"https://me:{login}@{login}.example/moved?api_key={login}"})

    def _elsewhere(self, count: int, told: str, asked: Asked) -> Fault | None:
        link = self.link.format(login=_login(asked))
        return Fault(body=json.dumps({"data": [], "next": link, "words": told}).encode())

    def _token_refused(self, number: int, fields: Mapping[str, str]) -> Answer | None:
        if fields["grant_type"] == "refresh_token":
            return None
        told = " ".join((WORD, secret("client"), *fields.values()))
        return Answer(401, json.dumps({"error": "invalid_client", "error_description": told}).encode())


def store_fields(dsn: str) -> dict[str, Any]:
    """The fields of an Airflow connection to a database."""
    parts = conninfo_to_dict(dsn)
    found = {"host": parts.get("host"), "port": parts.get("port"), "login": parts.get("user")}
    found |= {"password": parts.get("password"), "schema": parts.get("dbname")}
    return {name: value for name, value in found.items() if value}


@contextmanager
def planting() -> Iterator[Planted]:
    """Both servers running."""
    with ExitStack() as running:
        login = running.enter_context(LoginServer(client_secret=secret("refresh")))
        yield Planted(running.enter_context(LoopbackApi()), login)


def source() -> dict[str, Any]:
    """The source file."""
    pages = {
        "copied": {"by": "next_link", "take": "next", "stable": True},
        "elsewhere": {"by": "next_link", "take": "next"},
        "renewed": {"by": "token", "take": "next_cursor", "send": "cursor", "size": {"send": "limit", "max": 2}},
    }
    objects: dict[str, dict[str, Any]] = {
        name: {"path": f"/{name}", "records": "data", "key": "id", "pages": pages.get(name, {"by": "single"})}
        for name in dict.fromkeys(doing.object for doing in (*DOINGS, *MORE))
    }
    objects["no_topic"] |= {"events": ["created"], "publish": {"kafka": f"{SOURCE}_kafka"}}
    return {"source": SOURCE, "connection": f"{SOURCE}_bearer", "objects": objects}


def dag() -> str:
    """A DAG file of a person's own: a task for each of the things to do."""
    tasks = "\n".join(
        f"    BackfillOperator(task_id={doing.object!r}, source=source, object={doing.object!r},"
        f" api_conn_id='{SOURCE}_{doing.connection}', store_conn_id={doing.store!r})"
        for doing in DOINGS
    )
    return f"""
import os
from pathlib import Path
from airflow.sdk import DAG
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.operators.backfill import BackfillOperator

source = load_source(Path(os.environ["EXTRACT_SOURCES"] + "_more") / "{SOURCE}.yaml")
with DAG("{SOURCE}", schedule=None, default_args={{"retries": 0}}):
{tasks}
"""


def _logins(asked: Asked) -> list[str]:
    """All logins of a request, as they came, without the scheme before them."""
    names = ("Authorization", "Proxy-Authorization", "X-Subscription", "X-Api-Key")
    found = [*(asked.headers[name] for name in names if name in asked.headers), asked.params.get("api_key", "")]
    return [value.partition(" ")[2] or value for value in found if value]


def _login(asked: Asked) -> str:
    """The login itself, fit for a URL."""
    (first, *_) = _logins(asked)
    return quote(_opened(first), safe="")


def _opened(login: str) -> str:
    """What a pair in base64 holds; any other login as it is."""
    return login if login.startswith((MARK, "access-")) else base64.b64decode(login).decode()


def _repeated(asked: Asked) -> str:
    """The logins of a request as APIs repeat them: as they came, opened, and as in a URL. Beside them the word."""
    logins = _logins(asked)
    values = dict.fromkeys((*logins, *map(_opened, logins)))
    return " ".join((WORD, *(form for value in values for form in (value, quote(value, safe="")))))


def _right(count: int, told: str, asked: Asked) -> Fault | None:
    return None


def _json(status: int, told: str, headers: Mapping[str, str] | None = None) -> Fault:
    return Fault(status, json.dumps({"error": told}).encode(), headers or {})


def _html(told: str) -> Fault:
    return Fault(body=f"<html>{told}</html>".encode(), headers={"X-Echo": told})


_HICCUPS: tuple[Callable[[str], Fault], ...] = (
    lambda told: _json(500, told),
    lambda told: _json(429, told, {"Retry-After": "0"}),
    _html,
)
