"""`airflow-extract receiver`: its arguments, and what they start."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_extract_provider.commands.command import command
from airflow_extract_provider.extract.errors import FixConfig
from airflow_extract_provider.receiver.settings import Settings

__all__ = ["arguments", "run"]

_EXTRA = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")

_DIGITS = 9


def _at_least(least: int, most: int = 10**9 - 1) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > _DIGITS or not least <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return number


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ArgumentTypeError(f"{text!r} is no address such as https://hooks.example.com")
    return text.rstrip("/")


def _proxies(text: str) -> str:
    addresses = [each.strip() for each in text.split(",")]
    for each in addresses:
        try:
            _ = each == "*" or ip_network(each)
        except ValueError:  # uvicorn would take it for the name of a socket, and trust nobody
            raise ArgumentTypeError(f"{each!r} is no address such as 10.0.0.7, no network such as 10.0.0.0/8") from None
    return ",".join(addresses)


_SECONDS: Mapping[str, Any] = {"type": _at_least(1), "metavar": "SECONDS"}
_ID: Mapping[str, Any] = {"metavar": "ID"}
_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "--sources": {
        "type": Path,
        "required": True,
        "metavar": "DIR",
        "help": "the folder with the sources' YAML files",
    },
    "--host": {"default": "127.0.0.1", "help": "the address to listen on; 0.0.0.0: all of them"},
    "--port": {"type": _at_least(0, 65_535), "default": 8766, "help": "the port to listen on; 0: any that is free"},
    "--workers": {
        "type": _at_least(1),
        "default": 2,
        "metavar": "N",
        "help": "how many processes receive; one that dies is replaced, unless it is the only one",
    },
    "--public-url": {
        "type": _url,
        "metavar": "URL",
        "help": "the receiver's address as those know it who send, such as https://hooks.example.com, for APIs that "
        "sign it; without it the header Host counts",
    },
    "--behind-proxy": {
        "type": _proxies,
        "metavar": "ADDRESSES",
        "help": "proxies whose X-Forwarded-Proto counts, with commas between them; not needed with --public-url",
    },
    "--keep": {
        "choices": ("postgres", "kafka"),
        "default": "postgres",
        "help": "where webhooks are kept: in the inbox in Postgres, or in a Kafka topic on the way to it",
    },
    "--store-conn-id": {**_ID, "default": "extract_store", "help": "the Postgres connection of the store"},
    "--schema": {"default": "extract", "help": "the schema of the bookkeeping"},
    "--kafka-conn-id": {**_ID, "default": "kafka_default", "help": "the Kafka connection of --keep kafka"},
    "--topic": {"default": "extract.webhooks", "help": "the topic of --keep kafka"},
    "--secrets-every": {**_SECONDS, "default": 60, "help": "how often the secrets are read anew"},
    "--connections": {
        "type": _at_least(1),
        "default": 1000,
        "metavar": "N",
        "help": "how many connections a worker has at most; beyond them those of strangers are closed",
    },
    "--stop-within": {**_SECONDS, "default": 20, "help": "how long a stop waits for what is being received"},
}


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    for name, told in _ARGUMENTS.items():
        default = "" if told.get("default") is None else " (default: %(default)s)"
        parser.add_argument(name, **{**told, "help": told["help"] + default})


@command
def run(args: Namespace) -> Iterator[str]:
    """Receive webhooks and keep them: 2xx is answered only when they are on the disk."""
    try:
        from airflow_extract_provider.receiver.serving import Listen, serve
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise FixConfig(
            f"the receiver needs {exc.name}, which is not installed.",
            todo="pip install 'airflow-extract-provider[receiver]'",
        ) from None
    settings = Settings(
        sources=args.sources,
        store_conn_id=args.store_conn_id,
        schema=args.schema,
        keep=args.keep,
        kafka_conn_id=args.kafka_conn_id,
        topic=args.topic,
        public_url=args.public_url,
        secrets_every=timedelta(seconds=args.secrets_every),
    )
    listen = Listen(
        host=args.host,
        port=args.port,
        workers=args.workers,
        behind=args.behind_proxy,
        connections=args.connections,
        stop=args.stop_within,
    )
    if code := serve(settings, listen):
        raise SystemExit(code)
    yield "The receiver has stopped."
