"""Reads sources from YAML files, presets below them, and says what is wrong in the words of the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, ValidationError

from airflow_extract_provider.extract import paging, storing, sweeping
from airflow_extract_provider.extract.cursor import cursor_key
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.receiving import Endpoint, Told
from airflow_extract_provider.extract.signing import Scheme
from airflow_extract_provider.extract.source import ApiObject, Source, laid_over

__all__ = ["check_tables_differ", "load_source", "load_sources", "parse_source", "presets"]

_PAGES: Mapping[str, type[BaseModel]] = {
    get_args(model.model_fields["by"].annotation)[0]: model for model in get_args(get_args(paging.Pages)[0])
}
"""The kinds of pages by what `by` calls them."""

_PARTS: Mapping[str, type[BaseModel]] = {
    "by_key": paging.ByKey,
    "columns": storing.Column,
    "fold": storing.Fold,
    "hash": storing.RecordHash,
    "map": storing.HashMapRef,
    "publish": storing.KafkaPublish,
    "relay": storing.KafkaPublish,
    "since": paging.Since,
    "size": paging.PageSize,
    "sweep": sweeping.Sweep,
    "timestamps": paging.Timestamps,
}
"""The other parts of a file by their keys."""

_WEBHOOKS: Mapping[int, type[BaseModel]] = {3: Endpoint, 4: Scheme, 5: Told}
"""The parts of `webhooks` by how deep their keys lie: `endpoint.key`, `endpoint.verify.key`, `endpoint.types.type.key`.
"""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice: plain YAML keeps the last one, and an object would vanish unseen.

    Only true and false are booleans, and only decimal digits are numbers, as in YAML 1.2: a parameter `country: NO` is
    no false, `code: 010` no 8, `at: 12:30:00` no 45000, and a date stays the text it is.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _spelled, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+)?", "-+0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_spelled})\Z"), list(_first))


def load_source(path: Path) -> Source:
    """The source that a YAML file describes; `extends: NAME` lays the file over the shipped preset of that name.

    Raises SourceError: the file cannot be read, is no YAML, or says something that is not understood.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as exc:
        raise SourceError(
            f"{path.name} cannot be read ({exc.strerror}).", todo="Check the path and its rights."
        ) from None
    except (yaml.YAMLError, ValueError) as exc:  # ValueError: no UTF-8, a date that does not exist, a huge number
        raise SourceError(f"{path.name} is no YAML{_yaml_place(exc)}.", todo="Correct the file.") from None
    return parse_source(data, path.name)


def parse_source(data: Any, name: str) -> Source:
    """The source described by what a YAML file holds; ``name`` is the file's, for messages."""
    if not isinstance(data, dict):
        raise SourceError(f"{name} holds no mapping with `source`, `connection` and `objects`.", todo="See the README.")
    preset = data.get("extends")
    if preset is not None:
        below = dict(_preset(preset, name))
        if "accounts" in data and "connection" not in data:
            below.pop("connection", None)
        data = laid_over(below, data)
    data = {
        key: _objects(value, name) if key == "objects" else value for key, value in data.items() if key != "extends"
    }
    try:
        return Source.model_validate(data)
    except ValidationError as exc:
        _refuse(exc, name)


def _files(folder: Path) -> list[Path]:
    try:
        files = sorted(each for each in folder.iterdir() if each.suffix in (".yaml", ".yml"))
    except (FileNotFoundError, NotADirectoryError) as exc:
        what = f"{folder} is no folder." if isinstance(exc, NotADirectoryError) else f"there is no folder {folder}."
        raise SourceError(what, todo="Say which folder holds the source files.") from None
    except OSError as exc:
        raise SourceError(
            f"the folder {folder} cannot be read ({exc.strerror}).",
            todo="Let the user that this process runs as read it, and the files in it.",
        ) from None
    if not files:
        raise SourceError(f"the folder {folder} holds no source file.", todo="Put a *.yaml file there.")
    return files


def load_sources(folder: Path) -> Mapping[str, Source]:
    """Every source in a folder (``*.yaml``, ``*.yml``), by name in alphabetical order; a file with `accounts` describes
    one for each of them.

    Raises SourceError: the folder is missing, cannot be read or holds none, two files describe one source, or a file is
    wrong.
    """
    files = _files(folder)
    sources: dict[str, Source] = {}
    for path in files:
        for name, found in load_source(path).by_account().items():
            if name in sources:
                raise SourceError(f"{path.name} describes {name} a second time.", todo="Keep one of the two files.")
            sources[name] = found
    check_tables_differ(sources.values())
    return dict(sorted(sources.items()))


def told_apart(sources: Iterable[Source]) -> Mapping[str, Source]:
    """Sources by name. Raises SourceError: two have one name, such as `a_b` with an account `c` and `a` with an account
    `b_c`; or as :func:`check_tables_differ`."""
    found: dict[str, Source] = {}
    for each in sources:
        if found.setdefault(each.source, each) is not each:
            raise SourceError(f"two sources are called {each.source}.", todo="Give one of them another name.")
    check_tables_differ(found.values())
    return found


def check_tables_differ(sources: Iterable[Source]) -> None:
    """See that no two objects of any source share a table or a cursor: they would overwrite each other's.

    Raises SourceError: two do.
    """
    owners: dict[tuple[str, str], str] = {}
    cursors: dict[str, str] = {}
    for source in sources:
        for name in source.objects:
            table, owner = source.table(name), f"{source.source}/{name}"
            if (other := owners.setdefault(table, owner)) != owner:
                raise SourceError(
                    f"{other} and {owner} share the table {'.'.join(table)}.", todo="Give one of them another `table`."
                )
            shown = cursor_key(source.source, name, "backfill")
            if (other := cursors.setdefault(shown, owner)) != owner:
                raise SourceError(f"{other} and {owner} share the Variable {shown}.", todo="Rename one of them.")


def presets() -> tuple[str, ...]:
    """The presets that ship with the package, by name: what `extends` may say."""
    shipped = resources.files("airflow_extract_provider") / "sources"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in shipped.iterdir() if item.name.endswith(".yaml")))


def _preset(preset: Any, name: str) -> dict[str, Any]:
    shipped, names = resources.files("airflow_extract_provider") / "sources", presets()
    if preset not in names:
        raise SourceError(f"{name} extends {preset!r}, which is no preset.", todo=f"Choose one of: {', '.join(names)}.")
    data = yaml.safe_load((shipped / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def _objects(objects: Any, file: str) -> Any:
    """The objects without those set to null, which are left out. An object's name stands before it, nowhere else."""
    if not isinstance(objects, Mapping):
        return objects
    for name, spec in objects.items():
        if isinstance(spec, Mapping) and "name" in spec:
            raise SourceError(f"{file}: `objects.{name}.name` is no known key.", todo="Correct the file.")
    return {name: spec for name, spec in objects.items() if spec is not None}


def _yaml_place(exc: Exception) -> str:
    mark = getattr(exc, "problem_mark", None)
    return f" (line {mark.line + 1}: {getattr(exc, 'problem', '')})" if mark else ""


def _refuse(exc: ValidationError, name: str) -> NoReturn:
    lines = list(_complaints(exc))
    more = f" (and {len(lines) - 5} more)" if len(lines) > 5 else ""
    raise SourceError(f"{name}: " + "; ".join(lines[:5]) + more, todo="Correct the file.") from None


def _complaints(exc: ValidationError) -> Iterator[str]:
    """One clause a mistake, in the words of the file; values are left out, they could be secrets."""
    for error in exc.errors(include_url=False, include_input=False):
        loc = [str(part) for part in error["loc"]]
        # Within `pages`, its kind stands in the place too, though not in the file.
        place = [part for before, part in zip(["", *loc], loc, strict=False) if before != "pages" or part not in _PAGES]
        at = ".".join(place)
        if error["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(place))
            yield f"`{at}` is no known key; known here: {known}"
        elif error["type"] == "missing":
            yield f"`{at}` is missing"
        elif error["type"] == "union_tag_not_found":
            yield f"`{at}.by` is missing: say how the API is paged ({', '.join(_PAGES)})"
        elif error["type"] == "union_tag_invalid":
            yield f"`{at}.by` is none of: {', '.join(_PAGES)}"
        else:
            yield (
                f"`{at}`: {error['msg'].removeprefix('Value error, ')}"
                if at
                else error["msg"].removeprefix("Value error, ")
            )


def _known_keys(place: list[str]) -> list[str]:
    if place[0] == "webhooks" and (found := _WEBHOOKS.get(len(place))) is not None:
        return sorted(found.model_fields)
    inside = place[2:-1] if place[0] == "objects" else place[:-1]
    # A number in a list, or the name of a column, stands between a part and its keys.
    after = inside[:1] if inside[:1] == ["columns"] else reversed(inside[-2:])
    part = next((each for each in after if each in _PARTS or each == "pages"), None)
    models: Iterable[type[BaseModel]]
    if part is not None:
        models = _PAGES.values() if part == "pages" else [_PARTS[part]]
    elif place[0] == "objects":
        models = [ApiObject]
    else:
        return sorted([*Source.model_fields, "defaults", "extends"])
    fields = {spec.alias or name for model in models for name, spec in model.model_fields.items()}
    return sorted({*fields, *({"request"} if part is None and len(place) == 3 else ())} - {"name"})
