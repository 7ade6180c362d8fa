"""What of a record is stored, and where: the parts of an object's config that say it, as frozen values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import Frozen, PathText, PathTexts, field_path

__all__ = [
    "BOOK_COLUMNS",
    "Column",
    "ColumnType",
    "Columns",
    "Fold",
    "Folds",
    "Hash",
    "HashMapRef",
    "HashName",
    "KafkaPublish",
    "Keep",
    "Publish",
    "RecordHash",
    "kept",
    "read_beside",
]

BOOK_COLUMNS = ("key", "data", "version", "revision", "raw_hash", "canonical_hash", "applied_at", "deleted_at")
"""The columns that every record table has."""

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TABLE = re.compile(r"([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,62}")

ColumnType: TypeAlias = Literal[
    "text", "bigint", "numeric", "double precision", "boolean", "timestamptz", "date", "jsonb"
]
Constant: TypeAlias = str | int | bool | None


def _keep(value: Any) -> Any:
    """``all``, ``none``, or a list of paths."""
    if value in ("all", "none"):
        return None if value == "all" else ()
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("keep is all, none, or a list of the fields to keep")
    return tuple(field_path(path) for path in value)


def kept(paths: tuple[FieldPath, ...] | None) -> str:
    """``keep`` in words."""
    if paths is None:
        return "all"
    return ", ".join(".".join(path) for path in paths) or "none"


Keep: TypeAlias = Annotated[
    tuple[FieldPath, ...] | None,
    BeforeValidator(
        _keep, json_schema_input_type=Literal["all", "none"] | Annotated[list[PathText], Field(min_length=1)]
    ),
]
"""The paths of the record that `data` keeps; None: all of it."""


HashName: TypeAlias = Literal["xxh3", "md5", "sha256", "blake2b"]
"""A hash function; the first one is the usual one."""


class HashMapRef(Frozen):
    """Where hashes are kept beside Postgres."""

    redis: str = Field(min_length=1, description="the Airflow connection of type Redis")


class RecordHash(Frozen):
    """What tells whether a record has changed."""

    by: HashName = Field(default="xxh3", description="the hash function: xxh3, md5, sha256 or blake2b")
    exclude: PathTexts = Field(default=(), description="volatile fields: a change of nothing but these is none")
    map: HashMapRef | None = Field(
        default=None, description="a place that knows the hashes too, and is asked before Postgres"
    )

    def check(self, read: Mapping[str, Iterable[FieldPath]]) -> None:
        """See that nobody reads what is excluded: it is not stored when nothing else changes, and would be out of date
        without a word. ``read``: the fields that are read, by who reads them; ``()`` is the whole record.

        Raises ValueError: somebody does.
        """
        for reader, paths in read.items():
            for path in paths:
                if found := next((each for each in self.exclude if _overlap(each, path)), None):
                    whole = "" if path else ", which reads the whole record"
                    raise ValueError(f"hash.exclude leaves out {'.'.join(found)}, but it is read by {reader}{whole}")


def _overlap(one: FieldPath, other: FieldPath) -> bool:
    """Whether it is one field, or one of them holds the other."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def _hash(value: Any) -> Any:
    """``md5`` is short for ``{by: md5}``."""
    return {"by": value} if isinstance(value, str) else value


Hash: TypeAlias = Annotated[RecordHash, BeforeValidator(_hash, json_schema_input_type=HashName | RecordHash)]


class Column(Frozen):
    """A typed column beside `data`."""

    path: PathText = Field(description="where the record holds the value")
    type: ColumnType = Field(description="its type in Postgres")


def _columns(value: Any) -> Any:
    """``status: text`` is short for the field of the column's own name."""
    if not isinstance(value, Mapping):
        return value
    return {name: {"path": name, "type": told} if isinstance(told, str) else told for name, told in value.items()}


def _named(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in value:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no column's name: lower-case letters, digits and _")
    return value


def _not_ours(value: Mapping[str, Column]) -> Mapping[str, Column]:
    if taken := sorted(set(value) & set(BOOK_COLUMNS)):
        raise ValueError(f"{', '.join(taken)}: every record table has a column of that name already")
    return _named(value)


Columns: TypeAlias = Annotated[
    Mapping[str, Column],
    BeforeValidator(_columns, json_schema_input_type=Mapping[str, ColumnType | Column]),
    AfterValidator(_not_ours),
]


class Fold(Frozen):
    """Fields of the record, written into a row of another table of the user's in the same transaction."""

    table: str = Field(description="the table, with its schema where that is not in the role's search path")
    where: Mapping[str, PathText] = Field(
        min_length=1, description="which row: its columns, and where the record holds what they are equal to"
    )
    set: Mapping[str, PathText] = Field(
        min_length=1, description="the columns to set, and where the record holds their values"
    )
    insert: bool = Field(default=False, description="make the row where it is missing; otherwise that is an error")
    deleted: Literal["keep", "remove"] | Mapping[str, Constant] = Field(
        default="keep",
        description="when the record is deleted: keep the row, remove it, or set columns to these values",
    )

    @field_validator("table")
    @classmethod
    def _plain_table(cls, value: str) -> str:
        if not _TABLE.fullmatch(value):
            raise ValueError(f"{value!r} is no table's name, such as org or sales.org")
        return value

    @field_validator("deleted")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and not value:
            raise ValueError("deleted is keep, remove, or columns with their values")
        return value

    @field_validator("where", "set", "deleted")
    @classmethod
    def _plain_columns(cls, value: Any) -> Any:
        return _named(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _columns_apart(self) -> Fold:
        if twice := sorted(set(self.where) & (set(self.set) | set(self.deleted if self.sets_deleted else ()))):
            raise ValueError(f"{', '.join(twice)}: a column is matched and set")
        return self

    @property
    def sets_deleted(self) -> bool:
        """Whether a deletion sets columns."""
        return not isinstance(self.deleted, str)

    @property
    def name(self) -> tuple[str, ...]:
        """The table's name, with its schema where that is given."""
        return tuple(self.table.split("."))

    def columns(self) -> Iterator[str]:
        """The columns of the table that are used."""
        yield from self.where
        yield from self.set
        if isinstance(self.deleted, Mapping):
            yield from self.deleted


def _folds(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | Fold) else value


Folds: TypeAlias = Annotated[tuple[Fold, ...], BeforeValidator(_folds, json_schema_input_type=Fold | list[Fold])]


def read_beside(columns: Columns, folds: Folds) -> Mapping[str, tuple[FieldPath, ...]]:
    """The fields of the record that are stored elsewhere than in `data`, by where that is said."""
    told = tuple(path for each in folds for path in (*each.where.values(), *each.set.values()))
    return {"columns": tuple(spec.path for spec in columns.values()), "fold": told}


class KafkaPublish(Frozen):
    """Events go to Kafka directly, acknowledged before the records are committed."""

    kafka: str = Field(min_length=1, description="the Airflow connection of type Apache Kafka")
    topic: str = Field(
        default="{source}.{object}", min_length=1, description="the topic; {source} and {object} are filled in"
    )


def _publish(value: Any) -> Any:
    if value != "outbox" and not isinstance(value, Mapping | KafkaPublish):
        raise ValueError("publish is outbox, or {kafka: <Airflow connection>, topic: <topic>}")
    return value if value == "outbox" or isinstance(value, KafkaPublish) else KafkaPublish.model_validate(value)


Publish: TypeAlias = Annotated[Literal["outbox"] | KafkaPublish, BeforeValidator(_publish)]
"""Where events go: into the outbox in Postgres, exactly once; or to Kafka, at least once."""
