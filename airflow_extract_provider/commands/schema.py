"""The command about the form of source files: `airflow extract schema`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from airflow_extract_provider.commands.command import NotUnderstood, command
from airflow_extract_provider.extract.schema import source_schema

__all__ = ["schema"]


@command
def schema(args: Namespace) -> Iterator[str]:
    """`airflow extract schema`."""
    text = json.dumps(source_schema(), indent=2, ensure_ascii=False)
    if args.output is None:
        yield text
        return
    try:
        Path(args.output).write_text(f"{text}\n", encoding="utf-8")
    except OSError as exc:
        raise NotUnderstood(f"--output: {args.output} cannot be written ({exc.strerror}).") from None
    yield f"The schema of source files is in {args.output}."
