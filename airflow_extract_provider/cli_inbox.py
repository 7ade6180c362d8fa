"""The commands `airflow extract inbox ...`; their work is imported when it is run."""

from __future__ import annotations

from airflow.cli.cli_config import ActionCommand, GroupCommand, lazy_load_command

from airflow_extract_provider.cli_arguments import STORE, argument

__all__ = ["INBOX"]

_SOURCE = argument("source", help="the source")
_PLACES = argument(
    "--place",
    nargs="+",
    action="extend",
    type=int,
    metavar="PLACE",
    help="the dead messages of the webhooks at these places, as listed",
)
_ALL = argument("--all", action="store_true", help="all dead messages of the source")

_SHOW = ActionCommand(
    name="show",
    help="Show what waits, what was applied, what is dead",
    description="Shows of each endpoint that webhooks have come to: how many wait, how many of their messages are "
    "parked to be tried again or dead, how many webhooks were applied, how old the oldest is that waits, when the last "
    "one came, and how many came twice or were forged since yesterday (in UTC).",
    func=lazy_load_command("airflow_extract_provider.commands.inbox.show"),
    args=(argument("source", nargs="?", help="only this source"), *STORE),
)

_AUDIT = ActionCommand(
    name="audit",
    help="Show which changes webhooks brought, which they told of late, and which never",
    description="Shows of each day (in UTC) and object what brought how many changes first: a webhook, polling, a "
    "sweep, or reading by key; and of how many of the others a webhook came late, never came, or may still come. Then "
    "what came to each endpoint. Warns where webhooks have stopped while polling finds changes.",
    func=lazy_load_command("airflow_extract_provider.commands.audit.audit"),
    args=(
        argument("source", nargs="?", help="only this source"),
        argument("--days", default="7", help="so many days back, today included (default: %(default)s)"),
        *STORE,
    ),
)

_PRUNE = ActionCommand(
    name="prune",
    help="Delete old webhooks that were applied",
    description="Deletes webhooks that were taken out of the inbox long enough ago, the ids of their messages, counts "
    "of days, and notes of what brought a change. What waits is kept, and a webhook with a message that is parked or "
    "dead.",
    func=lazy_load_command("airflow_extract_provider.commands.inbox.prune"),
    args=(
        argument("--older-than", default="30d", help="how old webhooks must be, such as 30d or 12h (default: 30d)"),
        argument(
            "--brought-older-than", default="90d", help="how old notes of what brought a change must be (default: 90d)"
        ),
        *STORE,
    ),
)

_DEAD = GroupCommand(
    name="dead",
    help="Messages of webhooks that were tried in vain",
    subcommands=(
        ActionCommand(
            name="list",
            help="Show the dead messages, and why",
            description="Shows the dead messages: place, number in the body, object, key, how often each was tried, "
            "when the webhook came, how the last try failed. Keys are shown only with --sources, of objects that are "
            "not private there.",
            func=lazy_load_command("airflow_extract_provider.commands.inbox.dead_list"),
            args=(
                argument("--source", help="only this source"),
                argument("--limit", default="100", help="at most so many (default: %(default)s)"),
                argument("--sources", help="the folder with the sources' YAML files, which tell what is private"),
                *STORE,
            ),
        ),
        ActionCommand(
            name="replay",
            help="Have dead messages tried again",
            description="Puts dead messages back, with all their tries: the next run that applies webhooks takes them. "
            "Nothing newer is written over. What came to an address that the source's file does not describe any more "
            "stays dead, and is told of: no run would take it.",
            func=lazy_load_command("airflow_extract_provider.commands.inbox.dead_replay"),
            args=(
                _SOURCE,
                _PLACES,
                _ALL,
                argument(
                    "--sources",
                    help="the folder with the sources' YAML files (default: `sources` in Airflow's DAGs folder, if it "
                    "is there)",
                ),
                *STORE,
            ),
        ),
        ActionCommand(
            name="drop",
            help="Delete dead messages",
            description="Deletes dead messages: they will never be applied. Their webhooks stay until they are pruned.",
            func=lazy_load_command("airflow_extract_provider.commands.inbox.dead_drop"),
            args=(_SOURCE, _PLACES, _ALL, *STORE),
        ),
    ),
)

INBOX = GroupCommand(name="inbox", help="Webhooks that wait to be applied", subcommands=(_AUDIT, _DEAD, _PRUNE, _SHOW))
