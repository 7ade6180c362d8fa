"""The commands about source files, before anything is run: `airflow extract check`, `plan`, `lint`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_extract_provider.commands.command import (
    NotUnderstood,
    command,
    connect,
    printable,
    source_of,
    sources_folder,
    stored,
)
from airflow_extract_provider.extract.errors import ExtractError, QuotaSpentError, SourceError
from airflow_extract_provider.extract.lint import ADVICE, Advice
from airflow_extract_provider.extract.lint import lint as advice_on
from airflow_extract_provider.extract.planning import plan as plan_of
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source, load_sources

if TYPE_CHECKING:
    from airflow_extract_provider.extract.api.client import ApiClient
    from airflow_extract_provider.extract.look import Look

__all__ = ["check", "lint", "plan"]

_TRIES = 2
"""A person waits: who is away twice is told to be away."""


@command
def check(args: Namespace) -> Iterator[str]:
    """`airflow extract check`."""
    from airflow_extract_provider.extract.look import look

    source = source_of(sources_folder(args), args.source)
    names = [source.object(name).name for name in args.object or source.objects]
    width, failed = max(map(len, names)) + 2, 0
    with closing(_client(source, args)) as client:
        for name in names:
            sent = client.requests
            try:
                yield from _seen(f"{name:<{width}}", look(source, name, client, deep=args.deep))
            except QuotaSpentError as exc:
                failed += 1
                begun = args.deep and client.requests > sent
                yield f"{name:<{width}}{_unseen(exc, source, name, deep=args.deep, begun=begun)}"
            except ExtractError as exc:
                failed += 1
                yield f"{name:<{width}}{_told(exc)}"
    if failed:
        raise SystemExit(1)


@command
def plan(args: Namespace) -> Iterator[str]:
    """`airflow extract plan`."""
    source = source_of(sources_folder(args), args.source)
    if not args.ask:
        yield from plan_of(source)
        return
    looks, failed = _looks(source, args)
    yield from map(printable, plan_of(source, looks))
    for name, exc in failed.items():
        yield f"{name}: {_unseen(exc, source, name) if isinstance(exc, QuotaSpentError) else _told(exc)}"
    if failed:
        raise SystemExit(1)


@command
def lint(args: Namespace) -> Iterator[str]:
    """`airflow extract lint`."""
    accepted = _accepted(args.accept or [])
    folder = Path(sources_folder(args))
    sources, wrong = _readable(folder)
    yield from wrong
    advised = 0
    for source in sources:
        for advice in advice_on(source):
            where = f"{source.source}/{advice.object}"
            if not accepted & {advice.name, f"{advice.name}:{where}", f"{advice.name}:{source.source}"}:
                advised += 1
                yield _line(where, advice)
    if wrong or advised:
        yield f"{counted(len(wrong), 'file')} wrong, {counted(advised, 'piece')} of advice: docs/checks.md#advice"
        raise SystemExit(1)
    yield f"{counted(len(sources), 'source')}: nothing to say."


def _client(source: Source, args: Namespace) -> ApiClient:
    """The source's client, with the connection from beside Airflow's database."""
    from airflow_extract_provider.hooks.api import RestApiHook

    hook = RestApiHook(source.connection, connection=stored(source.connection))
    return hook.client(source, tokens=partial(connect, args.conn_id), schema=args.schema, tries=_TRIES)


def _looks(source: Source, args: Namespace) -> tuple[Mapping[str, Look], Mapping[str, ExtractError]]:
    """A look at each object, and the error of each that cannot be looked at."""
    from airflow_extract_provider.extract.look import look

    looks: dict[str, Look] = {}
    failed: dict[str, ExtractError] = {}
    with closing(_client(source, args)) as client:
        for name in source.objects:
            try:
                looks[name] = look(source, name, client)
            except ExtractError as exc:
                failed[name] = exc
    return looks, failed


def _seen(head: str, seen: Look) -> Iterator[str]:
    """A line of what is as the source file says, and one for each doubt."""
    good = ", ".join(["reachable", *(each.what for each in seen.findings if not each.doubtful)])
    yield printable(f"{head}{good}: {counted(len(seen.doubts), 'doubt') if seen.doubts else 'ok'}")
    for each in seen.doubts:
        yield printable(f"{'':<{len(head)}}doubt: {each.what} -> {each.todo}")


def _told(exc: ExtractError) -> str:
    """An error on one line: the place is told by the line itself."""
    record = "" if exc.record is None else f" (record {exc.record})"
    todo = f" {exc.todo}" if exc.todo else ""
    return printable(f"{type(exc).__name__}: {exc.what}{record}{todo} docs/errors.md#{exc.anchor}")


def _unseen(exc: QuotaSpentError, source: Source, name: str, *, deep: bool = False, begun: bool = False) -> str:
    """What the limit did not let us see, on one line: nothing is wrong with the object, as far as anybody knows."""
    until = "now" if exc.until is None else f"{exc.until:%Y-%m-%d %H:%M:%S} UTC"
    again = f"airflow extract check {source.source} --object {name}{' --deep' if deep else ''}"
    seen = "not looked at to the end" if begun else "not looked at"
    return printable(f"{seen}: the limit allows no request before {until} -> then: {again}")


def _accepted(names: list[str]) -> set[str]:
    """The advice that is not to be given. Raises NotUnderstood: there is none of that name."""
    for name in names:
        if name.partition(":")[0] not in ADVICE:
            raise NotUnderstood(f"--accept: there is no advice {name.partition(':')[0]!r}; see docs/checks.md#advice.")
    return set(names)


def _readable(folder: Path) -> tuple[list[Source], list[str]]:
    """The sources of a folder, and a line for each file that is wrong; where none is, also what they are together.

    Raises SourceError: there is no file.
    """
    sources, wrong = [], []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            sources.append(load_source(path))
        except SourceError as exc:
            wrong.append(_told(exc))
    if not wrong:
        load_sources(folder)
    return sources, wrong


def _line(where: str, advice: Advice) -> str:
    return printable(f"{where}   {advice.name}   {advice.what} -> {advice.todo}")
