"""The JSON schema of source files (draft 2020-12): with it editors complete and check them while they are written.

It is made of the models that read the files, short forms included. What it refuses is refused when the file is loaded,
too; not the other way round: what depends on several keys at once only loading finds out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from airflow_extract_provider.extract.rules import Rule
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import presets
from airflow_extract_provider.extract.sweeping import Deletes

__all__ = ["Schema", "source_schema", "spelled"]

Schema: TypeAlias = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TRUE_OR_FALSE = r"^([tT]([rR][uU][eE])?|[fF]([aA][lL][sS][eE])?|[yY]([eE][sS])?|[nN]([oO])?|[oO]([nN]|[fF][fF])|0|1)$"
_WHOLE = r"^\s*[-+]?[0-9][0-9_]*(\.0*)?\s*$"
_NAMES = r"^\s*[a-z][a-z0-9_]{0,62}\s*$"
_PARTIAL = "Partial"
"""What the names of those parts begin with that `defaults` or a preset may complete."""
_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
    "us": timedelta(microseconds=1),
}


def source_schema() -> Schema:
    """The schema of a source file as JSON values."""
    made = Source.model_json_schema(schema_generator=_AsWritten)
    parts: Schema = made["$defs"]
    for part in parts.values():
        for told in part["properties"].values():
            told.pop("ge", None)  # a bound of durations, which are texts here
    for model in get_args(Rule):
        _as_rule(model, parts[model.__name__])
    _as_object(parts["ApiObject"])
    parts.update(_partials(parts))
    properties = _source_properties(made["properties"])
    return {
        "$schema": _DRAFT,
        "title": "A source",
        "description": Source.__doc__ or "",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "allOf": list(_asked(made["required"], parts["ApiObject"])),
        "$defs": dict(sorted(parts.items())),
    }


def spelled(value: Any) -> Any:
    """A value of a model as a file spells it: what JSON holds."""
    if isinstance(value, timedelta):
        name, unit = next((name, unit) for name, unit in _UNITS.items() if not value % unit)
        return f"{value // unit}{name}" if value else "0s"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Deletes):
        return str(value).replace(" ", "") if value.count is None else value.count
    if isinstance(value, BaseModel):
        told = {(spec.alias or name): getattr(value, name) for name, spec in type(value).model_fields.items()}
        return {name: spelled(each) for name, each in told.items() if each is not None and each != ()}
    if isinstance(value, tuple):
        return [spelled(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value


class _AsWritten(GenerateJsonSchema):
    """Takes what the models take: a text with spaces around it, `yes` for true, `"5"` for 5."""

    def str_schema(self, schema: core_schema.StringSchema) -> Schema:
        made = super().str_schema(schema)
        if "pattern" in made:
            made["pattern"] = re.sub(r"\$(?=\||$)", r"\\s*$", re.sub(r"(^|\|)\^", r"\1^\\s*", made["pattern"]))
        return made

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Schema:
        made = super().default_schema(schema)
        return {name: told for name, told in made.items() if name != "default" or told not in (None, [], {})}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def bool_schema(self, schema: core_schema.BoolSchema) -> Schema:  # noqa: ARG002
        return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": _TRUE_OR_FALSE}]}

    def int_schema(self, schema: core_schema.IntSchema) -> Schema:
        numbers = [super().int_schema(schema), {"type": "string", "pattern": _WHOLE}]
        # True is a one to the models.
        low, high = schema.get("ge", 0), schema.get("le", 1)
        return {"anyOf": numbers if low > 1 or high < 0 else [*numbers, {"type": "boolean"}]}

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> Schema:  # noqa: ARG002
        return {"type": ["string", "number"]}

    def encode_default(self, dft: Any) -> Any:
        return spelled(dft)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> Schema:
        """By what its word says it is, one of several: what is wrong is then said of that one."""
        made = super().tagged_union_schema(schema)
        kinds: dict[str, str] = made["discriminator"]["mapping"]
        if made["discriminator"]["propertyName"] == "kind":
            return _rule_schema(kinds)
        return {
            "type": "object",
            "required": ["by"],
            "properties": {"by": {"enum": list(kinds), "description": "how the API is paged"}},
            "allOf": [
                {"if": {"properties": {"by": {"const": kind}}, "required": ["by"]}, "then": {"$ref": place}}
                for kind, place in kinds.items()
            ],
        }


def _words() -> Schema:
    """The rules that are said by a word alone."""
    return {"enum": [model.model_fields["kind"].default for model in get_args(Rule) if not _needed(model)]}


def _rule_schema(kinds: Mapping[str, str]) -> Schema:
    """A rule: a word, or a mapping of one word to what belongs to it."""
    return {
        "anyOf": [
            _words(),
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
                "properties": {kind: {"$ref": place} for kind, place in kinds.items()},
            },
        ]
    }


def _needed(model: type[BaseModel]) -> list[str]:
    return [spec.alias or name for name, spec in model.model_fields.items() if spec.is_required()]


def _as_rule(model: type[BaseModel], made: Schema) -> None:
    """What stands below a rule's word: all but the word. Nothing, where nothing is needed; a text for the one key that
    is."""
    properties = made["properties"]
    del properties["kind"]
    if "fields" in properties:
        properties["field"] = {"type": "string", "description": "the one field that counts, short for `fields`"}
    needed = _needed(model)
    if not needed:
        made["type"] = ["object", "null"]
    elif len(needed) == 1:
        short = {name: each for name, each in properties[needed[0]].items() if name != "description"}
        told = {name: made.pop(name) for name in ("type", "properties", "required", "additionalProperties")}
        made["anyOf"] = [short, told]


def _as_object(made: Schema) -> None:
    """An object stands below its name; null leaves it out. `request` is short for method and path."""
    made["type"] = ["object", "null"]
    made["required"].remove("name")
    made["required"].remove("path")
    made["anyOf"] = [{"required": ["path"]}, {"required": ["request"]}]
    request = {
        "type": "string",
        "pattern": r"^\s*(GET|POST)\s+/",
        "description": "method and path in one, such as POST /v1/search",
    }
    del made["properties"]["name"]
    made["properties"] = {"request": request, **made["properties"]}
    events = made["properties"]["events"]
    made["properties"]["events"] = {
        "description": events.pop("description"),
        "anyOf": [{"type": "array", **events}, _words()],
    }
    for name in ("schema", "table"):
        made["properties"][name]["anyOf"][0]["pattern"] = _NAMES


def _source_properties(made: Schema) -> Schema:
    made["source"] = {**made["source"], "pattern": _NAMES, "description": "its name, also of the Postgres schema"}
    made["objects"] = {"description": "the objects by name, each a table", "type": "object"}
    shipped = {"enum": [*presets(), None], "description": "a preset that ships with the package, below this file"}
    below = {"description": "what holds for all objects that say nothing else", "type": ["object", "null"]}
    below |= {"$ref": f"#/$defs/{_PARTIAL}ApiObject"}
    first = ("source", "extends", "connection")
    last = ("defaults", "objects")
    found = {**made, "extends": shipped, "defaults": below}
    between = [name for name in made if name not in (*first, *last)]
    return {name: found[name] for name in (*first, *between, *last)}


def _asked(source: list[str], object: Schema) -> Iterator[Schema]:
    """What must be there, as long as neither `extends` nor `defaults` may bring it."""
    extends, defaults = {"required": ["extends"]}, {"required": ["defaults"]}
    connected = [{"required": ["connection"]}, {"required": ["accounts"]}]
    yield {"if": {"not": extends}, "then": {"required": source, "anyOf": connected}}
    yield {
        "if": {"anyOf": [extends, defaults]},
        "then": _objects({"$ref": f"#/$defs/{_PARTIAL}ApiObject"}),
        "else": _objects({"$ref": "#/$defs/ApiObject"}),
    }
    for needed in [*({"required": [name]} for name in object["required"]), {"anyOf": object["anyOf"]}]:
        below = {**defaults, "properties": {"defaults": needed}}
        yield {"if": {"not": {"anyOf": [extends, below]}}, "then": _objects(needed)}


def _objects(spec: Schema) -> Schema:
    # Null: it is left out.
    each = spec if "$ref" in spec else {"if": {"type": "object"}, "then": spec}
    return {"properties": {"objects": {"propertyNames": {"pattern": _NAMES}, "additionalProperties": each}}}


def _partials(parts: Mapping[str, Schema]) -> Schema:
    """Each part with nothing required: mappings are merged with those of `defaults` or a preset, lists are replaced."""
    return {f"{_PARTIAL}{name}": _partial(part, parts) for name, part in parts.items()}


def _partial(node: Any, parts: Mapping[str, Schema]) -> Any:
    if isinstance(node, list):
        return [_partial(each, parts) for each in node]
    if not isinstance(node, dict):
        return node
    made: Schema = {}
    for word, told in node.items():
        if word in ("items", "if", "enum", "default", "const"):
            made[word] = told
        elif word == "properties":
            made[word] = {name: _partial(each, parts) for name, each in told.items()}
        elif word == "$ref":
            made[word] = told.replace("#/$defs/", f"#/$defs/{_PARTIAL}")
        elif word == "anyOf" and any(set(each) == {"required"} for each in told):
            continue
        elif word not in ("required", "minProperties"):
            made[word] = _partial(told, parts)
    return _any_kind(made, parts) if "by" in node.get("required", ()) and "allOf" in node else made


def _any_kind(made: Schema, parts: Mapping[str, Schema]) -> Schema:
    """Pages whose kind is not said here: the keys of all kinds."""
    known: dict[str, list[Schema]] = {}
    for each in made["allOf"]:
        kind = parts[re.sub(rf"^#/\$defs/{_PARTIAL}", "", each["then"]["$ref"])]
        for name, told in kind["properties"].items():
            found = known.setdefault(name, [])
            found += [told] if told not in found else []
    del known["by"]
    keys = {name: _partial(told[0] if len(told) == 1 else {"anyOf": told}, parts) for name, told in known.items()}
    unsaid = {"if": {"not": {"required": ["by"]}}, "then": {"properties": keys, "additionalProperties": False}}
    return {**made, "allOf": [*made["allOf"], unsaid]}
