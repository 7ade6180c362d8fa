"""`airflow-extract from-kafka`: its arguments, and what they start."""

from __future__ import annotations

import logging
import signal
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from airflow_extract_provider.commands.command import command

__all__ = ["arguments", "run"]

_log = logging.getLogger(__name__)

_STORE = "--conn-type postgres --conn-host HOST --conn-schema DATABASE --conn-login USER --conn-password PASSWORD"


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    default, add = " (default: %(default)s)", parser.add_argument
    add("--kafka-conn-id", default="kafka_default", metavar="ID", help=f"the Kafka connection{default}")
    add(
        "--topic",
        default="extract.webhooks",
        help=f"the topic that `airflow-extract receiver --keep kafka` keeps webhooks in{default}",
    )
    add("--group", help="the consumer group (default: the connection's `group.id`, else extract-inbox)")
    add("--store-conn-id", default="extract_store", metavar="ID", help=f"the Postgres connection of the store{default}")
    add("--schema", default="extract", help=f"the schema of the bookkeeping{default}")


@command
def run(args: Namespace) -> Iterator[str]:
    """Bring webhooks from a Kafka topic into the inbox, until it is stopped; several may do so at once."""
    from airflow_extract_provider.extract.webhooks.kafka_inbox import consume
    from airflow_extract_provider.hooks.kafka import EXAMPLE, consumer_settings
    from airflow_extract_provider.receiver.connections import beside_airflow, telling
    from airflow_extract_provider.receiver.reopening import reopening

    _log_to_stderr()
    find = telling(beside_airflow())
    connect = reopening(args.store_conn_id, lambda: find(args.store_conn_id, _STORE))
    kafka = find(args.kafka_conn_id, EXAMPLE)
    config = consumer_settings(args.kafka_conn_id, args.group, connection=kafka)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    _log.info("webhooks go from Kafka's topic %s into the inbox", args.topic)
    done = consume(config, args.topic, connect, args.schema, stop)
    yield (
        f"Stopped: {done.read:,} read, {done.stored:,} stored, {done.duplicate:,} known already, "
        f"{done.unreadable:,} unreadable, {done.lost:,} lost."
    )


def _log_to_stderr() -> None:
    """Not as Airflow's configuration says, which is for its own processes."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"))
    ours = logging.getLogger("airflow_extract_provider")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
