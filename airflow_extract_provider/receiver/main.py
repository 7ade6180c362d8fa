"""The command `airflow-extract`: processes that serve beside Airflow. What looks and tidies up is `airflow extract`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from airflow_extract_provider.receiver import from_kafka, receive

__all__ = ["main"]

_COMMANDS: tuple[tuple[str, Any], ...] = (("receiver", receive), ("from-kafka", from_kafka))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands; ends with its exit code."""
    parser = ArgumentParser(prog="airflow-extract", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in _COMMANDS:
        says = module.run.__doc__
        command = commands.add_parser(name, help=says, description=says)
        module.arguments(command)
        command.set_defaults(run=module.run, parser=command)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # argparse would show how to call the command above it, in which the right name does not stand
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.run(args)
    sys.exit(0)


if __name__ == "__main__":
    main()
