"""The commands `airflow extract ...`. Airflow loads this with each of its own: the work is imported when it is run."""

from __future__ import annotations

from airflow.cli.cli_config import ActionCommand, CLICommand, GroupCommand, lazy_load_command

from airflow_extract_provider.cli_arguments import SCHEMA as _SCHEMA
from airflow_extract_provider.cli_arguments import STORE as _STORE
from airflow_extract_provider.cli_arguments import argument as _argument
from airflow_extract_provider.cli_inbox import INBOX

__all__ = ["get_extract_cli_commands"]

_MIGRATE = ActionCommand(
    name="migrate",
    help="Make or upgrade the tables in Postgres",
    description="Makes or upgrades the bookkeeping schema and the record tables of the sources, in one transaction. "
    "Run again, it does nothing.",
    func=lazy_load_command("airflow_extract_provider.commands.store.migrate"),
    args=(
        _argument("--sources", help="the folder with the sources' YAML files; without it only the bookkeeping is made"),
        *_STORE,
        _argument(
            "--new",
            action="append",
            metavar="SOURCE[/OBJECT]",
            help="this is new, not another name for what the store knows; may be given several times",
        ),
        _argument("--sql", action="store_true", help="print the SQL for an empty database instead of running it"),
    ),
)

_GRANTS = ActionCommand(
    name="grants",
    help="Print the rights of a role that only runs",
    description="Prints the SQL that gives a role the rights which the sources need to run, and no other; or those of "
    "a webhook receiver, or of who brings webhooks from Kafka. The owner of the tables runs it, after each migration "
    "that has made new ones.",
    func=lazy_load_command("airflow_extract_provider.commands.store.grants"),
    args=(
        _argument("role", help="the role of the store's connection"),
        _argument("--sources", help="the folder with the sources' YAML files; required for a role that runs them"),
        _argument("--receiver", action="store_true", help="of a role that only receives webhooks"),
        _argument("--from-kafka", action="store_true", help="of a role that only brings webhooks from Kafka"),
        _SCHEMA,
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

_SOURCE = _argument("source", help="the source")
_FOLDER = _argument(
    "--sources", help="the folder with the sources' YAML files (default: `sources` in Airflow's DAGs folder)"
)

_CHECK = ActionCommand(
    name="check",
    help="Ask the API once for each object, and compare with the source file",
    description="Sends one request for each object, the one with which its backfill would begin, and tells whether the "
    "API can be reached, and the list, keys, versions, order and page size are as the source file says. Nothing is "
    "stored. Ends with code 1 if an object could not be read; doubts do not count.",
    func=lazy_load_command("airflow_extract_provider.commands.sources.check"),
    args=(
        _SOURCE,
        _FOLDER,
        _argument("--object", nargs="+", action="extend", metavar="OBJECT", help="only these objects"),
        _argument("--deep", action="store_true", help="also ask by `since`, and for one record by its key"),
        *_STORE,
    ),
)

_PLAN = ActionCommand(
    name="plan",
    help="Show which walks follow from the source file, and why",
    description="Shows for each object how it is copied, how changes and deletes are found, and what is not seen. The "
    "API is asked only with --ask: once for each object, for how many requests a first copy takes.",
    func=lazy_load_command("airflow_extract_provider.commands.sources.plan"),
    args=(_SOURCE, _FOLDER, _argument("--ask", action="store_true", help="ask the API how much there is"), *_STORE),
)

_LINT = ActionCommand(
    name="lint",
    help="Show what is wrong, dangerous or likely a mistake in the source files",
    description="Reads all source files of a folder and tells what is wrong in each, and what is allowed but "
    "dangerous. The API is not asked. Ends with code 1 if a file is wrong or there is advice that is not accepted.",
    func=lazy_load_command("airflow_extract_provider.commands.sources.lint"),
    args=(
        _FOLDER,
        _argument(
            "--accept",
            action="append",
            metavar="NAME[:SOURCE[/OBJECT]]",
            help="leave this advice out, everywhere or for a source or object; may be given several times",
        ),
    ),
)

_WRITE_SCHEMA = ActionCommand(
    name="schema",
    help="Write the JSON schema of source files, for editors",
    description="Writes the JSON schema (draft 2020-12) of source files. An editor that knows it completes keys, shows "
    "what they mean, and marks what is misspelt.",
    func=lazy_load_command("airflow_extract_provider.commands.schema.schema"),
    args=(_argument("--output", metavar="FILE", help="write it into this file instead of showing it"),),
)

_OBJECT = _argument("object", help="the object")
_WALK = _argument("walk", help="backfill, incremental or rebackfill")
_API_URL = _argument("--api-url", help="the address of Airflow's API server (default: `base_url` of the section `api`)")
_TAKE_OVER = _argument("--take-over", action="store_true", help="take the walk from a run that holds it")
_LOGIN = (
    " Logs in at Airflow's REST API by the environment variable AIRFLOW_EXTRACT_API_TOKEN, or by "
    "AIRFLOW_EXTRACT_API_USERNAME and AIRFLOW_EXTRACT_API_PASSWORD."
)

_CURSORS = GroupCommand(
    name="cursors",
    help="Where walks stand: show, edit, start over",
    subcommands=(
        ActionCommand(
            name="list",
            help="Show where each walk stands, and whether its Variable agrees",
            description="Shows of each walk that has a cursor what the ledger says, and whether the Variable agrees "
            "with it, was edited, or is missing." + _LOGIN,
            func=lazy_load_command("airflow_extract_provider.commands.cursors.list_cursors"),
            args=(
                _argument("source", nargs="?", help="only this source"),
                _argument("object", nargs="?", help="only this object"),
                _API_URL,
                *_STORE,
            ),
        ),
        ActionCommand(
            name="show",
            help="Show a walk's cursor, as the Variable and the ledger have it",
            description="Shows the cursor of a walk as the Variable has it, and as the ledger does." + _LOGIN,
            func=lazy_load_command("airflow_extract_provider.commands.cursors.show"),
            args=(_SOURCE, _OBJECT, _WALK, _API_URL, *_STORE),
        ),
        ActionCommand(
            name="set",
            help="Edit a walk's cursor",
            description="Writes a cursor, if a run would follow it: what a run would refuse is refused before anything "
            "is written. No run may hold the object meanwhile." + _LOGIN,
            func=lazy_load_command("airflow_extract_provider.commands.cursors.set_one"),
            args=(
                _SOURCE,
                _OBJECT,
                _WALK,
                _argument("--text", metavar="JSON", help="the cursor"),
                _argument("--file", help="a file with the cursor"),
                _argument("--closed", metavar="INSTANT", help="of incremental: read again what changed since then"),
                _FOLDER,
                _TAKE_OVER,
                _API_URL,
                *_STORE,
            ),
        ),
        ActionCommand(
            name="reset",
            help="Let a walk start over",
            description="Deletes the cursor of a walk, so that its next run starts over. No record is deleted. Without "
            "--yes it only says what will happen." + _LOGIN,
            func=lazy_load_command("airflow_extract_provider.commands.cursors.reset"),
            args=(
                _SOURCE,
                _OBJECT,
                _WALK,
                _argument("--yes", metavar="SOURCE/OBJECT", help="the object once more: this is meant"),
                _TAKE_OVER,
                _API_URL,
                *_STORE,
            ),
        ),
    ),
)

_THOUGH_UNREAD = _argument(
    "--though-unread", action="store_true", help="also if consumers have not handled all events of the old name"
)

_RENAME = ActionCommand(
    name="rename",
    help="Let the store follow an object that was renamed, or its table",
    description="Gives all that the store knows of an object the name that the source file says now, and renames its "
    "table where that follows the name. Its walks go on where they stand. No walk of it may run meanwhile, and "
    "consumers must have handled the events of the old name.",
    func=lazy_load_command("airflow_extract_provider.commands.names.rename"),
    args=(
        _SOURCE,
        _argument("old", help="the object's name so far"),
        _argument("new", help="its name in the source file; the same, if only its table is called otherwise"),
        _argument("--table", metavar="SCHEMA.TABLE", help="the table that holds the copy, if not the one it had"),
        _THOUGH_UNREAD,
        _FOLDER,
        *_STORE,
    ),
)

_RENAME_SOURCE = ActionCommand(
    name="rename-source",
    help="Let the store follow a source that was renamed",
    description="Gives all that the store knows of a source the name that its file says now, and moves its tables "
    "where their schema follows the name. Its walks go on where they stand. None of them may run meanwhile, and "
    "consumers must have handled the events of the old name.",
    func=lazy_load_command("airflow_extract_provider.commands.names.rename_source"),
    args=(
        _argument("old", help="the name so far"),
        _argument("new", help="the name in the file"),
        _THOUGH_UNREAD,
        _FOLDER,
        *_STORE,
    ),
)

_FORGET = ActionCommand(
    name="forget",
    help="Forget an object, or a source",
    description="Deletes all that the store knows of an object, or of all objects of a source: where its walks stand, "
    "what was noted and set aside. Events stay, and so does the table unless it is to be dropped. Without --yes it "
    "only says what will happen.",
    func=lazy_load_command("airflow_extract_provider.commands.names.forget"),
    args=(
        _SOURCE,
        _argument("object", nargs="?", help="only this object"),
        _argument("--yes", metavar="SOURCE[/OBJECT]", help="the name once more: this is meant"),
        _argument(
            "--drop-table",
            action="append",
            metavar="SCHEMA.TABLE",
            help="drop this record table too, which no other object writes; may be given several times",
        ),
        _FOLDER,
        *_STORE,
    ),
)


def get_extract_cli_commands() -> list[CLICommand]:
    """What this package adds to the `airflow` command."""
    commands = (
        _CHECK,
        _COVERAGE,
        _CURSORS,
        _EVENTS,
        _FOLD,
        _FORGET,
        _GRANTS,
        INBOX,
        _LINT,
        _MIGRATE,
        _PLAN,
        _QUARANTINE,
        _RENAME,
        _RENAME_SOURCE,
        _WRITE_SCHEMA,
    )
    return [GroupCommand(name="extract", help="Copy REST APIs into Postgres", subcommands=commands)]
