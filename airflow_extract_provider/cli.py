"""The commands `airflow extract ...`. Airflow loads this with each of its own: the work is imported when it is run."""

from __future__ import annotations

from typing import Any

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand, lazy_load_command

__all__ = ["get_extract_cli_commands"]


def _argument(name: str, **kwargs: Any) -> Arg:
    return Arg((name,), **kwargs)  # type: ignore[no-untyped-call]  # Airflow's class has no types


_CONN_ID = _argument("--conn-id", default="extract_store", help="the Postgres connection (default: %(default)s)")
_SCHEMA = _argument("--schema", default="extract", help="the schema of the bookkeeping (default: %(default)s)")
_STORE = (_CONN_ID, _SCHEMA)

_MIGRATE = ActionCommand(
    name="migrate",
    help="Make or upgrade the tables in Postgres",
    description="Makes or upgrades the bookkeeping schema and the record tables of the sources, in one transaction. "
    "Run again, it does nothing.",
    func=lazy_load_command("airflow_extract_provider.commands.store.migrate"),
    args=(
        _argument("--sources", help="the folder with the sources' YAML files; without it only the bookkeeping is made"),
        *_STORE,
        _argument("--sql", action="store_true", help="print the SQL for an empty database instead of running it"),
    ),
)

_COVERAGE = ActionCommand(
    name="coverage",
    help="Show what is complete up to when, and the gaps",
    description="Shows for which instants the copy of an object is complete, and the gaps in between.",
    func=lazy_load_command("airflow_extract_provider.commands.store.coverage"),
    args=(
        _argument("source", nargs="?", help="only this source"),
        _argument("object", nargs="?", help="only this object"),
        *_STORE,
    ),
)

_FOLD = ActionCommand(
    name="fold",
    help="Fold old ledger rows into few",
    description="Folds the ledger's rows of old pages into few, so that it does not grow for ever. Coverage stays the "
    "same, and walks may run meanwhile.",
    func=lazy_load_command("airflow_extract_provider.commands.store.fold"),
    args=(
        _argument("--older-than", default="30d", help="how old pages must be, such as 30d or 12h (default: 30d)"),
        *_STORE,
    ),
)

_LIST = ActionCommand(
    name="list",
    help="Show what could not be stored, and why",
    description="Shows the records that could not be stored: where they were seen, how often, and why. Their values "
    "are shown only with --raw.",
    func=lazy_load_command("airflow_extract_provider.commands.quarantine.quarantined"),
    args=(
        _argument("--source", help="only this source"),
        _argument("--object", help="only this object"),
        _argument("--limit", default="100", help="at most so many (default: %(default)s)"),
        _argument("--raw", action="store_true", help="show the records too: they may hold personal data"),
        *_STORE,
    ),
)

_REPLAY = ActionCommand(
    name="replay",
    help="Store what can be read now",
    description="Reads the quarantined records of an object again, as the source file says now, and stores those that "
    "can be read. Nothing newer is written over; no walk of the object may run meanwhile.",
    func=lazy_load_command("airflow_extract_provider.commands.quarantine.replay"),
    args=(
        _argument("source", help="the source"),
        _argument("object", help="the object"),
        _argument("--sources", required=True, help="the folder with the sources' YAML files"),
        *_STORE,
    ),
)

_QUARANTINE = GroupCommand(
    name="quarantine", help="Records that could not be stored as they are", subcommands=(_LIST, _REPLAY)
)

_CONSUMER = _argument("consumer", help="the consumer")
_PLACES = _argument("places", nargs="*", type=int, metavar="place", help="the places of the dead letters, as listed")
_ALL = _argument("--all", action="store_true", help="all dead letters of the consumer")

_CONSUMERS = ActionCommand(
    name="consumers",
    help="Show who reads the events, and how far each is",
    description="Shows each consumer's place, how many events are behind it unread, how many are parked to be tried "
    "again, its dead letters, and since when the oldest event waits for it.",
    func=lazy_load_command("airflow_extract_provider.commands.events.consumers"),
    args=_STORE,
)

_DROP_CONSUMER = ActionCommand(
    name="drop-consumer",
    help="Forget a consumer",
    description="Forgets a consumer with all that it has parked, dead letters included; events that waited only for "
    "it can be deleted then. A run of it that is alive ends with FencedError. Used again, it begins anew.",
    func=lazy_load_command("airflow_extract_provider.commands.events.drop_consumer"),
    args=(_CONSUMER, *_STORE),
)

_DEAD = GroupCommand(
    name="dead",
    help="Events that a consumer has tried in vain",
    subcommands=(
        ActionCommand(
            name="list",
            help="Show the dead letters, and why",
            description="Shows the dead letters: place, type, key, how often each was tried, and how the last try "
            "failed, in the handler's own words. The events' data is not shown.",
            func=lazy_load_command("airflow_extract_provider.commands.events.dead_list"),
            args=(
                _argument("--consumer", help="only this consumer"),
                _argument("--limit", default="100", help="at most so many (default: %(default)s)"),
                *_STORE,
            ),
        ),
        ActionCommand(
            name="replay",
            help="Give dead letters to their consumer again",
            description="Puts dead letters back, with all their tries: the consumer's next run handles them. Later "
            "events of their records that were handled are not handled again.",
            func=lazy_load_command("airflow_extract_provider.commands.events.dead_replay"),
            args=(_CONSUMER, _PLACES, _ALL, *_STORE),
        ),
        ActionCommand(
            name="drop",
            help="Delete dead letters",
            description="Deletes dead letters: the consumer will never handle them.",
            func=lazy_load_command("airflow_extract_provider.commands.events.dead_drop"),
            args=(_CONSUMER, _PLACES, _ALL, *_STORE),
        ),
    ),
)

_PRUNE = ActionCommand(
    name="prune",
    help="Delete old events that nobody needs",
    description="Deletes events that all consumers have passed and none has parked. Consumers do so at the end of each "
    "run; this is for an outbox that is read by other means: while there is no consumer, all that are old enough go.",
    func=lazy_load_command("airflow_extract_provider.commands.events.prune"),
    args=(
        _argument("--older-than", default="30d", help="how old events must be, such as 30d or 12h (default: 30d)"),
        *_STORE,
    ),
)

_EVENTS = GroupCommand(
    name="events", help="Events and their consumers", subcommands=(_CONSUMERS, _DEAD, _DROP_CONSUMER, _PRUNE)
)


def get_extract_cli_commands() -> list[CLICommand]:
    """What this package adds to the `airflow` command."""
    commands = (_COVERAGE, _EVENTS, _FOLD, _MIGRATE, _QUARANTINE)
    return [GroupCommand(name="extract", help="Copy REST APIs into Postgres", subcommands=commands)]
