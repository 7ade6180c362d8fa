"""Where the receiver's secrets come from: neither Airflow's database nor its API server is asked."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowSecretsBackendAccessDenied

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.extract.signing import SCHEMES
from airflow_extract_provider.receiver import connections
from airflow_extract_provider.receiver.connections import Secrets, beside_airflow, telling
from tests.said import said_by

SECRET = "marked-secret-4711"
GITHUB = SCHEMES["github"]
TOLD: dict[str, Any] = {}
"""What the secrets backend below holds; an exception is raised."""


class Hanging:
    """A secret that comes when it is released."""

    def __init__(self) -> None:
        self.released, self.asked = threading.Event(), 0

    def waited(self) -> str:
        """It, at last."""
        self.asked += 1
        self.released.wait(60)
        return "late"


def eventually(true: Callable[[], bool]) -> None:
    """Return when something is so."""
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def refreshing(secrets: Secrets, every: float) -> Iterator[None]:
    """Within, they are read anew every so many seconds; afterwards no thread is left that reads."""
    ended = secrets.refreshing(every)
    try:
        yield
    finally:
        ended.set()
        eventually(lambda: {"secrets", "secret"}.isdisjoint(each.name for each in threading.enumerate()))


class Vault:
    """A secrets backend, as Airflow's configuration may name one."""

    def _set_connection_class(self, kind: type[Connection]) -> None:
        pass

    def get_connection(self, conn_id: str) -> Connection | None:
        """What it holds."""
        found = TOLD.get(conn_id)
        if isinstance(found, Hanging):
            found = found.waited()
        if isinstance(found, Exception):
            raise found
        return None if found is None else Connection(conn_id=conn_id, conn_type="webhook", password=found)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The backend, configured; empty."""
    TOLD.clear()
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", f"{__name__}.Vault")
    return TOLD


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks it fails."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://nobody@127.0.0.1:1/none")


def in_environment(monkeypatch: pytest.MonkeyPatch, conn_id: str, password: str) -> None:
    """A connection as an environment variable."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "webhook", "password": password}))


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON and as a URI."""
    in_environment(monkeypatch, "shop", SECRET)
    monkeypatch.setenv("AIRFLOW_CONN_CRM", "webhook://:a%2Fb@")
    secrets = Secrets(beside_airflow(), [("shop", GITHUB), ("crm", GITHUB)])
    assert secrets.of("shop")() == (SECRET,)
    assert secrets.of("crm")() == ("a/b",)
    assert SECRET not in repr(secrets)


def test_from_a_secrets_backend(vault: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before the environment; one that fails does not keep the environment from being asked."""
    in_environment(monkeypatch, "shop", "in the environment")
    in_environment(monkeypatch, "crm", "in the environment")
    vault |= {"shop": SECRET, "crm": OSError(SECRET)}
    find = beside_airflow()
    assert find("shop", "").password == SECRET
    assert find("crm", "").password == "in the environment"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "'shop' is not there"),
        (OSError(SECRET), "cannot be read .Vault: OSError"),
        (AirflowSecretsBackendAccessDenied(SECRET), "Vault denies it"),
    ],
)
def test_what_is_missing(vault: dict[str, Any], held: object, said: str) -> None:
    """It is named, with the variable that would hold it; a backend's own words are not shown."""
    vault["shop"] = held
    with pytest.raises(ConnectionMissingError, match=said) as missing:
        Secrets(beside_airflow(), [("shop", GITHUB)])
    assert "AIRFLOW_CONN_SHOP" in str(missing.value)
    assert SECRET not in str(missing.value)


def test_who_is_denied_looks_nowhere_else(vault: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend decides."""
    in_environment(monkeypatch, "shop", SECRET)
    vault["shop"] = AirflowSecretsBackendAccessDenied("no")
    with pytest.raises(ConnectionMissingError, match="denies"):
        beside_airflow()("shop", "")


def test_a_secret_that_verifies_nothing(vault: dict[str, Any]) -> None:
    """A scheme that reads base64 is given a text: found before anything comes."""
    vault["shop"] = f"{SECRET} is no base64"
    with pytest.raises(ConnectionMissingError, match="secret 1 of the Webhook connection 'shop'") as refused:
        Secrets(beside_airflow(), [("shop", SCHEMES["standard_webhooks"])])
    assert SECRET not in str(refused.value)


def test_a_login_beside_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where there is one: with it, the secret would be another, and all that comes be forged."""
    told = {"conn_type": "webhook", "login": "shop", "password": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", json.dumps(told))
    assert Secrets(beside_airflow(), [("shop", SCHEMES["basic"])]).of("shop")() == (f"shop:{SECRET}",)
    for schemes in ([GITHUB], [SCHEMES["basic"], GITHUB]):
        with pytest.raises(ConnectionMissingError, match="'shop' has a login") as refused:
            Secrets(beside_airflow(), [("shop", each) for each in schemes])
        assert SECRET not in str(refused.value)


def test_a_rotation_needs_no_restart(vault: dict[str, Any]) -> None:
    """What the backend holds then is known some seconds later."""
    vault["shop"] = "old"
    secrets = Secrets(beside_airflow(), [("shop", GITHUB)])
    asked = secrets.of("shop")
    with refreshing(secrets, 0.01):
        vault["shop"] = "new"
        eventually(lambda: asked() == ("new",))


def test_one_that_hangs_keeps_none_of_the_others(vault: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and it is not asked again; when it comes at last it counts."""
    vault |= {"a": "one", "b": "one"}
    secrets = Secrets(beside_airflow(), [("a", GITHUB), ("b", GITHUB)])
    said: list[str] = []
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    monkeypatch.setattr(connections, "_LONG", 0.5)
    monkeypatch.setattr(connections, "_LOOK", 0.05)
    monkeypatch.setattr(connections._log, "warning", lambda text, what: said.append(text % what))
    vault |= {"a": Hanging(), "b": "two"}
    with refreshing(secrets, 0.05):
        eventually(lambda: secrets.of("b")() == ("two",) and said != [])
        vault["b"] = "three"
        eventually(lambda: secrets.of("b")() == ("three",))
        assert vault["a"].asked == 1
        assert secrets.of("a")() == ("one",)
        assert len(said) == 1
        assert "'a' is waited for" in said[0]
        vault["a"].released.set()
        eventually(lambda: secrets.of("a")() == ("late",))


def test_whatever_a_backend_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The last ones stay, and the next time they are read."""
    in_environment(monkeypatch, "shop", "one")
    find, broken = beside_airflow(), [False]

    def found(conn_id: str, example: str) -> Connection:
        if broken[0]:
            raise ZeroDivisionError(SECRET)
        return find(conn_id, example)

    secrets = Secrets(found, [("shop", GITHUB)])
    broken[0] = True
    with refreshing(secrets, 0.05):
        with caplog.at_level(logging.WARNING, logger="airflow_extract_provider"):
            eventually(lambda: "ZeroDivisionError" in caplog.text)
        assert SECRET not in caplog.text
        in_environment(monkeypatch, "shop", "two")
        broken[0] = False
        eventually(lambda: secrets.of("shop")() == ("two",))


def test_the_last_good_ones_stay(vault: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """While one cannot be read it is said, once for each reason; the others are read. That it is read again is said
    too: whoever changes a secret waits for that."""
    vault |= {"shop": "one", "crm": "one"}
    secrets = Secrets(beside_airflow(), [("shop", GITHUB), ("crm", GITHUB)])
    caplog.set_level(logging.INFO, logger="airflow_extract_provider")
    vault["crm"] = "two"
    helds: list[Any] = [OSError(SECRET), OSError(SECRET), None, None]
    for held in helds:
        vault["shop"] = held
        secrets.refresh()
    assert (secrets.of("shop")(), secrets.of("crm")()) == (("one",), ("two",))
    helds = ["three", "three", None]
    for held in helds:
        vault["shop"] = held
        secrets.refresh()
    assert secrets.of("shop")() == ("three",)
    stay = "The secrets that were last read stay."
    assert sorted(each.getMessage() for each in caplog.records if "'crm'" in each.getMessage()) == [
        "the secrets of the connection 'crm' were read anew: 1 pass now."
    ]
    assert [each.getMessage() for each in caplog.records if "'shop'" in each.getMessage()] == [
        f"the connection 'shop' cannot be read (Vault: OSError). {stay}",
        f"the connection 'shop' is not there. {stay}",
        "the secrets of the connection 'shop' were read anew: 1 pass now.",
        f"the connection 'shop' is not there. {stay}",
    ]
    assert SECRET not in caplog.text


def test_what_does_not_come_at_the_start_is_told(
    vault: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts the receiver would see nothing. What comes in time is not told of, and no thread is left."""
    monkeypatch.setattr(connections, "_PATIENCE", 1.0)
    hanging = Hanging()
    vault |= {"shop": hanging, "crm": "one"}
    threads = threading.active_count()

    def releases() -> None:
        eventually(lambda: said_by(connections.__name__, caplog) != [])
        hanging.released.set()

    threading.Thread(target=releases, daemon=True).start()
    secrets = Secrets(telling(beside_airflow()), [("crm", GITHUB), ("shop", GITHUB)])
    assert secrets.of("shop")() == ("late",)
    assert [each.getMessage() for each in said_by(connections.__name__, caplog)] == [
        "the connection 'shop' is waited for: its secrets backend does not answer."
    ]
    eventually(lambda: threading.active_count() <= threads)


def test_a_variable_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there: how it is written is told, and nothing of what is in it."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_SHOP", json.dumps({"conn_type": "webhook", "password": SECRET, "previous": SECRET})
    )
    with pytest.raises(ConnectionMissingError, match="cannot be read") as caught:
        Secrets(beside_airflow(), [("shop", GITHUB)])
    assert '"extra": {"previous": "SECRET"}' in str(caught.value)
    assert SECRET not in str(caught.value)
