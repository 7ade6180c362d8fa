"""docs/reference.md, made of what the code says of itself: ``python -m tests.layout.reference --write`` writes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand
from pydantic import TypeAdapter

from airflow_extract_provider.cli import get_extract_cli_commands
from airflow_extract_provider.extract import errors, paging, rates, schema, sweeping
from airflow_extract_provider.extract.error import ExtractError, FixConfig, StopAndLook, TryAgain
from airflow_extract_provider.extract.rules import Rule
from airflow_extract_provider.get_provider_info import get_provider_info

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
Schema: TypeAlias = dict[str, Any]

_INTRO = """\
# Reference

<!-- Written by `make docs` from the models, the commands, the errors and the provider's own description. -->

Every key of a source file, every command, every error, every field of a connection, as the code has them. What they are
for, with examples: [sources](sources.md), [events](events.md), [operations](operations.md), [errors](errors.md).
"""
_KINDS = {
    TryAgain: "the same run may succeed later: Airflow's retries do it",
    FixConfig: "a person has to change a file, a connection or a right first",
    StopAndLook: "going on could lose records: a person looks first",
}


def reference() -> str:
    """The whole document."""
    parts = [_INTRO, *_keys(), "## Commands\n", *_commands(), "## Errors\n", *_errors(), *_connection(), *_options()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- the keys of a source file


def _words() -> dict[str, str]:
    """What a text with a pattern is called."""
    named = {paging.PathText: "field", paging.Duration: "duration", sweeping.Allowance: "percentage"}
    found = {}
    for alias, word in {**named, rates.Limits: "rate", paging.WrittenOrder: "order"}.items():
        made = TypeAdapter(alias).json_schema(schema_generator=schema._AsWritten)
        for each in [made, *made.get("anyOf", [])]:
            if "pattern" in each:
                found[each["pattern"]] = word
    return {**found, schema._NAMES: "name", schema._WHOLE: "number", schema._TRUE_OR_FALSE: "true or false"}


def _keys() -> Iterator[str]:
    whole = schema.source_schema()
    titles = _titles(whole)
    sections = {"Source": whole, **{name: whole["$defs"][name] for name in titles if name != "Source"}}
    yield "## Source files\n\nAn editor knows them by a [JSON schema](sources.md#in-an-editor).\n"
    for name, part in sections.items():
        told = part if "properties" in part else part["anyOf"][1]
        # Without a key at the top of a file `extends` may bring it, without one of an object `defaults`.
        needed = {*told.get("required", ()), *(("source", "objects") if name == "Source" else ())}
        rows = [
            (f"`{key}`", _type(each, titles), _default(each, key in needed), _sentence(each, key))
            for key, each in told["properties"].items()
        ]
        says = " ".join(inspect.cleandoc(part.get("description", "")).split()).replace("``", "`")
        table = _table(("key", "type", "default", "meaning"), rows) if rows else "No keys."
        yield f"### {titles[name]}\n\n{says}\n\n{table}\n"


def _titles(whole: Schema) -> dict[str, str]:
    """The heading of each part: by what it is called in a file."""
    found = {"Source": "A source", "ApiObject": "An object"}
    for model in get_args(get_args(paging.Pages)[0]):
        found[model.__name__] = f"`pages` by `{get_args(model.model_fields['by'].annotation)[0]}`"
    parts = {name: part for name, part in whole["$defs"].items() if not name.startswith("Partial")}
    rules = {model.__name__: f"The rule `{model.model_fields['kind'].default}`" for model in get_args(Rule)}
    for part in [*parts.values(), whole]:
        for key, told in part.get("properties", {}).items():
            for name in _refs(told):
                if name in parts and name not in rules:
                    found.setdefault(name, f"`{key}`")
    return {**found, **rules}


def _refs(node: Any) -> Iterator[str]:
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _refs(each)
    if isinstance(node, dict) and "$ref" in node:
        yield node["$ref"].rsplit("/", 1)[1]


def _type(told: Schema, titles: dict[str, str]) -> str:
    found = list(dict.fromkeys(word for word in _types(told, titles) if word))
    return " or ".join(found) or "any value"


def _types(told: Schema, titles: dict[str, str]) -> Iterator[str]:
    words = _words()
    if "$ref" in told:
        name = told["$ref"].rsplit("/", 1)[1]
        name = name.removeprefix("Partial")
        yield f"[{titles[name]}](#{titles[name].lower().replace('`', '').replace(' ', '-')})"
    elif "anyOf" in told:
        each = [word for one in told["anyOf"] for word in _types(one, titles)]
        # What the models take for a number or a truth besides is no second way to write it.
        spare = () if "text" in each else ("true or false",) if "number" in each else ("number", "")
        yield from [word for word in each if word not in spare]
    elif "by" in told.get("properties", {}) and "allOf" in told:
        yield "a kind of pages, below"
    elif "enum" in told or "const" in told:
        yield ", ".join(f"`{each}`" for each in told.get("enum", [told.get("const")]) if each not in (None, 0, 1))
    elif told.get("type") == "array":
        inner = _type(told["items"], titles)
        yield "list of rules" if "rule" in inner else f"list of {inner}{'s' if inner.isalpha() else ''}"
    elif told.get("type") == "object":
        more = told.get("additionalProperties")
        yield f"mapping of names to {_type(more, titles)}" if isinstance(more, dict) else _object(told)
    else:
        yield words.get(told.get("pattern", ""), _plain(told.get("type")))


def _object(told: Schema) -> str:
    return "a rule" if "created" in told.get("properties", {}) else "mapping"


def _plain(kind: Any) -> str:
    names = {"string": "text", "integer": "number", "number": "number", "boolean": "true or false", "null": ""}
    return names.get(kind, "any value") if isinstance(kind, str) else "text"


def _default(told: Schema, needed: bool) -> str:
    if needed:
        return "required"
    value = told.get("default", "")
    if value == "" or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _sentence(told: Schema, key: str) -> str:
    return str(told.get("description", "this kind" if key == "by" else ""))


# --- commands


def _commands() -> Iterator[str]:
    for group in get_extract_cli_commands():
        yield from _command(group, "airflow")


def _command(command: ActionCommand | GroupCommand, before: str) -> Iterator[str]:
    name = f"{before} {command.name}"
    if isinstance(command, GroupCommand):
        for each in sorted(command.subcommands, key=lambda each: each.name):
            yield from _command(each, name)
        return
    rows = [_argument(each) for each in command.args]
    table = _table(("argument", "default", "meaning"), rows) if rows else "No arguments."
    yield f"### `{name}`\n\n{command.description or command.help}\n\n{table}\n"


def _argument(arg: Arg) -> tuple[str, str, str]:
    flags, said = ", ".join(f"`{flag}`" for flag in arg.flags), arg.kwargs
    optional = arg.flags[0].startswith("-") or said.get("nargs") in ("?", "*")
    value = said.get("default")
    default = f"`{value}`" if value is not None else "required" if said.get("required") or not optional else ""
    meaning = str(said.get("help", "")) % {"default": value}
    return flags, default, meaning


# --- errors, connections, configuration


def _errors() -> Iterator[str]:
    for kind, says in _KINDS.items():
        found = [
            each for name in errors.__all__ if issubclass(each := getattr(errors, name), kind) and each is not kind
        ]
        rows = [(f"`{each.__name__}`", _about(each), f"[{each.anchor}](errors.md#{each.anchor})") for each in found]
        table = _table(("error", "when", "what to do"), rows)
        yield f"### `{kind.__name__}`\n\n{says[0].upper()}{says[1:]}.\n\n{table}\n"


def _about(kind: type[ExtractError]) -> str:
    return " ".join(inspect.getdoc(kind).split()).replace("``", "`")  # type: ignore[union-attr]


def _connection() -> Iterator[str]:
    for kind in get_provider_info()["connection-types"]:
        shown = kind["ui-field-behaviour"]
        rows = [(f"`{name}`", told, "", "") for name, told in shown["relabeling"].items()]
        for name, told in kind["conn-fields"].items():
            default = told["schema"].get("default")
            value = "" if default is None else f"`{default}`"
            rows.append((f"`{name}`", told["label"], value, told["description"]))
        table = _table(("field", "label", "default", "meaning"), rows)
        about = f"Its type is `{kind['connection-type']}`. More of its extra: [operations](operations.md#connections)."
        yield f"## A connection of type {kind['hook-name']}\n\n{about}\n\n{table}\n"


def _options() -> Iterator[str]:
    for section, told in get_provider_info().get("config", {}).items():
        rows = [
            (f"`{name}`", f"`{each['default']}`" if each.get("default") else "", " ".join(each["description"].split()))
            for name, each in told["options"].items()
        ]
        yield f"## Airflow's configuration, section `[{section}]`\n\n{_table(('option', 'default', 'meaning'), rows)}\n"


def main() -> None:
    """Print the document, or write it."""
    if "--write" in sys.argv[1:]:
        REFERENCE.write_text(reference(), encoding="utf-8")
    else:
        print(reference())


if __name__ == "__main__":
    main()
