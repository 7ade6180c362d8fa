"""A source (one API) and its objects (its tables), as frozen values read from Python or YAML.

The config states what the API promises, in the words of its documentation; how it is walked follows from that. A key
that is not known is an error, and so is everything that would have to be guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.page import FieldPath

__all__ = [
    "ApiObject",
    "LastKeyPages",
    "PageSize",
    "Pages",
    "Source",
    "TokenPages",
    "check_tables_differ",
    "load_source",
    "load_sources",
]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD = re.compile(r"[A-Za-z_$@][A-Za-z0-9_$@-]*")


def _field_path(value: Any) -> Any:
    """``a.b`` as ("a", "b"). Dotted names only: a path that picks and reshapes would lose the record's own bytes."""
    if not isinstance(value, str):
        return value
    parts = tuple(value.split("."))
    if not all(_FIELD.fullmatch(part) for part in parts):
        raise ValueError(f"{value!r} is no path: write field names with dots between them, such as data.items")
    return parts


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """What YAML read as a number or boolean, as it is sent in a query string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


Path_: TypeAlias = Annotated[FieldPath, BeforeValidator(_field_path)]
Text: TypeAlias = Annotated[str, BeforeValidator(_text)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class PageSize(_Frozen):
    """The parameter that asks for a page size, and the largest the API documents. The server may send fewer."""

    send: str = Field(min_length=1, description="the query parameter that carries the page size")
    max: int = Field(ge=2, description="records a page; at least 2, since pages overlap by a record")


class LastKeyPages(_Frozen):
    """Pages asked for by the key of the last record seen, such as Stripe's ``starting_after``."""

    by: Literal["last_key"]
    send: str = Field(min_length=1, description="the query parameter that carries the key to go on after")
    more: Path_ | None = Field(
        None,
        description="where the answer says whether there is more; without it the walk asks until nothing new comes",
    )
    size: PageSize | None = Field(None, description="how to ask for a page size")


class TokenPages(_Frozen):
    """Pages asked for by a token that the page before carried in its body."""

    by: Literal["token"]
    take: Path_ = Field(description="where the answer holds the next page's token")
    send: str = Field(min_length=1, description="the query parameter that carries the token")
    last: Annotated[tuple[Literal["null", "absent", "empty"], ...], BeforeValidator(_one_or_many)] = Field(
        ("null",), description="what the token is on the last page: null, absent, empty, or several of them"
    )
    size: PageSize | None = Field(None, description="how to ask for a page size")


Pages: TypeAlias = Annotated[LastKeyPages | TokenPages, Field(discriminator="by")]


class Order(_Frozen):
    """The order the API promises: by this field, rising or (``-created``) falling. Checked while reading."""

    field: Path_
    falling: bool = False


def _order(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError("order takes one field, such as [created] or [-created]")
        value = value[0]
    if isinstance(value, str):
        return {"field": value.removeprefix("-"), "falling": value.startswith("-")}
    return value


class ApiObject(_Frozen):
    """One table of an API: where it is, what identifies a record, how it is paged, what is promised about order."""

    name: str
    path: str = Field(pattern=r"^/\S*$", description="the path below the connection's base URL")
    key: Annotated[tuple[Path_, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1, description="the primary key: one field or several, nested ones with dots"
    )
    pages: Pages = Field(description="how the API is paged; there is no default, since a wrong guess loses records")
    records: Annotated[FieldPath, BeforeValidator(lambda v: () if v == "@" else _field_path(v))] = Field(
        description="where the answer holds the list of records; @ when the answer is the list"
    )
    version: Path_ | None = Field(None, description="the field that holds the instant of the last change (RFC 3339)")
    order: Annotated[Order, BeforeValidator(_order)] | None = Field(
        None, description="the order that the API promises: [created] or, newest first, [-created]"
    )
    params: Mapping[str, Text] = Field(default_factory=dict, description="query parameters sent with each request")
    schema_: str | None = Field(None, alias="schema", description="the Postgres schema; by default the source's name")
    table: str | None = Field(None, description="the Postgres table; by default the object's name")

    @field_validator("name", "schema_", "table")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        return _plain(value)

    @model_validator(mode="after")
    def _fields_stand_apart(self) -> ApiObject:
        if len({*self.key}) < len(self.key):
            raise ValueError("key names a field twice")
        fields = {*self.key, *([self.version] if self.version else []), *([self.order.field] if self.order else [])}
        for field in fields:
            if any(field[:length] in fields for length in range(1, len(field))):
                raise ValueError(f"{'.'.join(field)} lies below a field that is itself a key, version or order")
        return self

    @model_validator(mode="after")
    def _last_key_is_one_field(self) -> ApiObject:
        if self.pages.by == "last_key" and len(self.key) != 1:
            raise ValueError("pages.by: last_key sends one key, but `key` has several fields")
        sent = {self.pages.send, *([self.pages.size.send] if self.pages.size else [])}
        if twice := sent & set(self.params):
            raise ValueError(f"params sets {sorted(twice)}, which `pages` sends itself")
        return self


class Source(_Frozen):
    """One API: the Airflow connection with its address and login, the headers it wants, its objects."""

    source: str
    connection: str = Field(min_length=1, description="the Airflow connection of type REST API")
    headers: Mapping[str, Text] = Field(default_factory=dict, description="headers sent with each request; no secrets")
    objects: Mapping[str, ApiObject] = Field(min_length=1)

    @field_validator("source")
    @classmethod
    def _plain_name(cls, value: str) -> str | None:
        return _plain(value)

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, data: Any) -> Any:
        """Lay `defaults` under each object and give each its name."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        defaults = data.pop("defaults", None) or {}
        if not isinstance(defaults, Mapping):
            raise ValueError("`defaults` is no mapping")
        objects = data.get("objects")
        if isinstance(objects, Mapping):
            data["objects"] = {
                name: {"name": name, **_laid_over(defaults, spec)} if isinstance(spec, Mapping) else spec
                for name, spec in objects.items()
            }
        return data

    @model_validator(mode="after")
    def _tables_differ(self) -> Source:
        tables: dict[tuple[str, str], str] = {}
        for name in self.objects:
            other = tables.setdefault(self.table(name), name)
            if other != name:
                raise ValueError(f"objects {other} and {name} share the table {'.'.join(self.table(name))}")
        return self

    def table(self, name: str) -> tuple[str, str]:
        """Schema and table of an object's records."""
        found = self.object(name)
        return found.schema_ or self.source, found.table or found.name

    def made(self, name: str) -> str:
        """A digest of what decides which records an object's copy holds, and where: not of how they are paged."""
        found = self.object(name)
        told = [found.path, sorted(found.params.items()), found.records, self.table(name)]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()

    def object(self, name: str) -> ApiObject:
        """An object by name.

        Raises SourceError: there is none of that name.
        """
        if name not in self.objects:
            raise SourceError(
                f"there is no object {name!r}.", source=self.source, todo=f"Choose one of: {', '.join(self.objects)}."
            )
        return self.objects[name]


def _plain(value: str | None) -> str | None:
    if value is not None and not _NAME.fullmatch(value):
        raise ValueError(f"{value!r}: use a lower-case letter, then lower-case letters, digits and _ (63 at most)")
    return value


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice: plain YAML keeps the last one, and an object would vanish unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        data = _laid_over(_preset(preset, name), data)
    data = {key: _without_none(value) if key == "objects" else value for key, value in data.items() if key != "extends"}
    try:
        return Source.model_validate(data)
    except ValidationError as exc:
        _refuse(exc, name)


def load_sources(folder: Path) -> Mapping[str, Source]:
    """Every source below a folder (``*.yaml``, ``*.yml``), by name in alphabetical order.

    Raises SourceError: the folder is missing or holds none, two files describe one source, or a file is wrong.
    """
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not files:
        raise SourceError(f"the folder {folder.name} holds no source file.", todo="Put a *.yaml file there.")
    sources: dict[str, Source] = {}
    for path in files:
        found = load_source(path)
        if found.source in sources:
            raise SourceError(f"{path.name} describes {found.source} a second time.", todo="Keep one of the two files.")
        sources[found.source] = found
    check_tables_differ(sources.values())
    return dict(sorted(sources.items()))


def check_tables_differ(sources: Iterable[Source]) -> None:
    """See that no two objects of any source share a table: they would overwrite each other's records.

    Raises SourceError: two do.
    """
    owners: dict[tuple[str, str], str] = {}
    for source in sources:
        for name in source.objects:
            table, owner = source.table(name), f"{source.source}/{name}"
            if (other := owners.setdefault(table, owner)) != owner:
                raise SourceError(
                    f"{other} and {owner} share the table {'.'.join(table)}.", todo="Give one of them another `table`."
                )


def _preset(preset: Any, name: str) -> dict[str, Any]:
    shipped = resources.files("airflow_extract_provider") / "sources"
    names = sorted(item.name.removesuffix(".yaml") for item in shipped.iterdir() if item.name.endswith(".yaml"))
    if preset not in names:
        raise SourceError(f"{name} extends {preset!r}, which is no preset.", todo=f"Choose one of: {', '.join(names)}.")
    data = yaml.safe_load((shipped / f"{preset}.yaml").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def _laid_over(below: Any, above: Any) -> Any:
    """``above`` where it says something, else ``below``; mappings are merged, everything else is replaced."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        merged[name] = _laid_over(below[name], above[name])
    return merged


def _without_none(objects: Any) -> Any:
    """An object set to null in a file that extends a preset is left out."""
    if not isinstance(objects, Mapping):
        return objects
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
        place = [str(part) for part in error["loc"] if part not in ("last_key", "token")]
        at = ".".join(place)
        if error["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(place))
            yield f"`{at}` is no known key; known here: {known}"
        elif error["type"] == "missing":
            yield f"`{at}` is missing"
        elif error["type"] == "union_tag_not_found":
            yield f"`{at}.by` is missing: say how the API is paged (last_key or token)"
        elif error["type"] == "union_tag_invalid":
            yield f"`{at}.by` is none of: last_key, token"
        else:
            yield (
                f"`{at}`: {error['msg'].removeprefix('Value error, ')}"
                if at
                else error["msg"].removeprefix("Value error, ")
            )


def _known_keys(place: list[str]) -> list[str]:
    kinds: dict[str, type[BaseModel]] = {"size": PageSize}
    if len(place) >= 2 and place[-2] in kinds:
        models: list[type[BaseModel]] = [kinds[place[-2]]]
    elif len(place) >= 2 and place[-2] == "pages":
        models = [LastKeyPages, TokenPages]
    elif place[0] == "objects":
        models = [ApiObject]
    else:
        return sorted([*Source.model_fields, "defaults", "extends"])
    fields = {spec.alias or name for model in models for name, spec in model.model_fields.items()}
    return sorted(fields - {"name"})
