"""The secrets behind an Airflow connection of type Webhook: read, counted, never shown."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import Connection
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.hooks.webhook import WebhookHook
from tests.taskrun import ApiServer

SECRET = "marked-secret-4711"


def hook(extra: Any = None, **fields: Any) -> WebhookHook:
    """A hook with a connection at hand."""
    told = None if extra is None else extra if isinstance(extra, str) else json.dumps(extra)
    given = {"password": SECRET, **fields}
    return WebhookHook("shop", connection=Connection(conn_id="shop", conn_type="webhook", extra=told, **given))


@pytest.mark.parametrize(
    ("extra", "fields", "found"),
    [
        (None, {}, (SECRET,)),
        ({"previous": None}, {}, (SECRET,)),
        ({"previous": "one"}, {}, (SECRET, "one")),
        ({"previous": "one\r\n\ntwo\n"}, {}, (SECRET, "one", "two")),
        ({"previous": ["with space", "two\n"]}, {}, (SECRET, "with space", "two")),
        ({"previous": '["with space", "two"]'}, {}, (SECRET, "with space", "two")),
        ({"previous": "[no-list]"}, {}, (SECRET, "[no-list]")),
        ({"previous": "4711"}, {}, (SECRET, "4711")),
        ({"previous": f"one\n{SECRET}"}, {}, (SECRET, "one")),
        (None, {"password": f"{SECRET}\r\n"}, (SECRET,)),
        (None, {"password": f" {SECRET}"}, (f" {SECRET}",)),
        ({"previous": "ann:old"}, {"login": "ann"}, (f"ann:{SECRET}", "ann:old")),
    ],
)
def test_its_secrets(extra: Any, fields: dict[str, Any], found: tuple[str, ...]) -> None:
    """The one that signs now stands first, each once; of basic with the user's name."""
    assert hook(extra, **fields).secrets() == found


@pytest.mark.parametrize(
    ("extra", "fields", "said"),
    [
        (None, {"password": None}, "holds no secret"),
        (None, {"password": "\n"}, "holds no secret"),
        ({"previous": 5}, {}, "wrong `previous`"),
        ({"previous": [SECRET, ""]}, {}, "wrong `previous`"),
        ({"previous": [SECRET, "\n"]}, {}, "wrong `previous`"),
        ({"previous": f'["{SECRET}", 5]'}, {}, "wrong `previous`"),
        ({"previous": "It's a Secret to Everybody"}, {}, "has spaces in `previous`"),
        ({"previous": f"{SECRET} {SECRET}2"}, {}, "has spaces in `previous`"),
        ({"previous": f"{SECRET}\n "}, {}, "has spaces in `previous`"),
        ({"previous": {"a": SECRET}}, {}, "wrong `previous`"),
        ({"secret": SECRET}, {}, "unknown keys in its extra: secret"),
        (f'["{SECRET}"]', {}, "no JSON object"),
    ],
)
def test_what_cannot_be_used(extra: Any, fields: dict[str, Any], said: str) -> None:
    """It is named, without a value."""
    with pytest.raises(ConnectionMissingError, match=said) as refused:
        hook(extra, **fields).secrets()
    assert SECRET not in str(refused.value)


def test_the_connection_is_tested() -> None:
    """In words, with the number of secrets, and none of them."""
    good, told = hook({"previous": f"{SECRET}2\n{SECRET}3"}).test_connection()
    assert good
    assert "One secret; 2 more still accepted" in told
    bad, why = hook({"previous": SECRET}, password=None).test_connection()
    assert not bad
    assert "holds no secret" in why
    assert SECRET not in told + why


def test_in_a_task() -> None:
    """It is looked up; where there is none, the message says how to make it."""
    told = {"conn_type": "webhook", "password": SECRET}
    with ApiServer(connections={"shop": told}).serving():
        assert WebhookHook("shop").secrets() == (SECRET,)
        with pytest.raises(ConnectionMissingError, match="connections add other --conn-type webhook"):
            WebhookHook("other").secrets()


def test_no_secret_is_pickled() -> None:
    """The copy looks it up again."""
    again = pickle.dumps(hook())
    assert SECRET.encode() not in again
    assert pickle.loads(again).webhook_conn_id == "shop"


def test_airflow_knows_the_type() -> None:
    """Its name, its form, its button."""
    manager = ProvidersManager()  # type: ignore[no-untyped-call]  # Airflow's
    known = ProvidersManagerTaskRuntime().hooks["webhook"]  # type: ignore[no-untyped-call]  # Airflow's
    assert known is not None
    assert (known.hook_name, known.connection_type, known.connection_testable) == ("Webhook", "webhook", True)
    assert known.hook_class_name == f"{WebhookHook.__module__}.{WebhookHook.__qualname__}"
    prefix = "extra__webhook__"
    widgets = {name: each for name, each in manager.connection_form_widgets.items() if name.startswith(prefix)}
    assert list(widgets) == [f"{prefix}previous"]
    assert widgets[f"{prefix}previous"].field["schema"]["format"] == "password"
    behaviour = manager.field_behaviours["webhook"]
    assert behaviour["relabeling"]["password"] == "Secret"
    assert behaviour["hidden_fields"] == ["host", "schema", "port"]
