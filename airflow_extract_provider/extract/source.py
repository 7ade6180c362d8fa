"""A source: one API and its objects, as a frozen value.

The config states what the API promises, in the words of its documentation; how it is walked follows from that. A key
that is not known is an error, and so is everything that would have to be guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from airflow_extract_provider.extract.api_object import ApiObject, plain_name
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.paging import Duration, Frozen
from airflow_extract_provider.extract.rates import Limits
from airflow_extract_provider.extract.receiving import Endpoint, Grace, Told
from airflow_extract_provider.extract.sent import Sent
from airflow_extract_provider.extract.storing import KafkaPublish

__all__ = ["ApiObject", "Source", "laid_over"]


class Source(Frozen):
    """One API: the Airflow connection with its address and login, the headers it wants, its objects."""

    source: str
    connection: str = Field(
        default="", description="the Airflow connection of type REST API; required unless there are `accounts`"
    )
    accounts: Mapping[str, str] = Field(
        default_factory=dict,
        description="several accounts of this API, each a source of its own: name and Airflow connection",
    )
    headers: Sent = Field(default_factory=dict, description="headers sent with each request; no secrets")
    limit: Limits = Field(
        default=(),
        description="how often the API may be asked, over all tasks: `20/s`, or several: [20/s, 10000/d]",
    )
    schedule: str = Field(
        default="@hourly",
        min_length=1,
        description="how often the sync DAG runs: a cron expression or preset, or a duration",
    )
    windows: str | None = Field(
        default="@daily",
        description="the windows of time that the backfill DAG reads, one a run, where the API filters by time: a cron "
        "expression or preset, or a duration; null: none",
    )
    relay: KafkaPublish | None = Field(
        default=None, description="where the relay DAG brings the events of the outbox: a Kafka connection and topic"
    )
    pool: int | None = Field(
        default=None,
        ge=1,
        description="how many of the source's tasks run at once, over all its DAGs: the slots of the pool "
        "`extract_<source>`, which `airflow extract migrate` makes; null: the default pool",
    )
    owner: str | None = Field(default=None, min_length=1, description="the owner of the DAGs, as Airflow shows it")
    tags: tuple[str, ...] = Field(default=(), description="tags of the DAGs beside their own")
    webhooks: Mapping[str, Endpoint] = Field(
        default_factory=dict, description="the addresses that the API sends webhooks to, by name, and what they tell"
    )
    webhooks_by: Literal["watcher", "sensor", "schedule"] = Field(
        default="watcher",
        description="what starts the DAG that applies webhooks as they come: an asset's watcher in the triggerer; a "
        "sensor, one of its tasks; or `webhooks_every` alone",
    )
    webhooks_every: Duration = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=1),
        description="how often webhooks are applied, heard of or not",
    )
    objects: Mapping[str, ApiObject] = Field(min_length=1)

    @field_validator("source")
    @classmethod
    def _plain_name(cls, value: str) -> str | None:
        return plain_name(value)

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, data: Any) -> Any:
        """Lay `defaults` under each object and give each its name."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        defaults = {} if (given := data.pop("defaults", None)) is None else given
        if not isinstance(defaults, Mapping):
            raise ValueError("`defaults` is no mapping")
        objects = data.get("objects")
        if isinstance(objects, Mapping):
            data["objects"] = {
                name: {**laid_over(defaults, spec), "name": name} if isinstance(spec, Mapping) else spec
                for name, spec in objects.items()
            }
        return data

    @model_validator(mode="after")
    def _connected(self) -> Source:
        if bool(self.connection) == bool(self.accounts):
            raise ValueError("give either `connection`, or several `accounts`, each a name and its connection")
        for account, connection in self.accounts.items():
            if not connection:
                raise ValueError(f"accounts.{account} names no connection")
            plain_name(account)
            plain_name(f"{self.source}_{account}")
            # A longer one would be cut off by Postgres, and might be another account's.
            for found in self.objects.values():
                plain_name(found.of_account(account).table)
        uses = [name for name, found in self.objects.items() if found.names_account]
        if uses and not self.accounts:
            raise ValueError(f"a template of {uses[0]} uses `account`, but there are no `accounts`")
        return self

    @model_validator(mode="after")
    def _webhooks_fit(self) -> Source:
        for endpoint, found in self.webhooks.items():
            plain_name(endpoint)
            for type, told in found.types.items():
                self._check_told(f"webhooks.{endpoint}.types.{type}", told)
        return self

    def _check_told(self, where: str, told: Told) -> None:
        if told.object not in self.objects:
            raise ValueError(f"{where}: there is no object {told.object!r}")
        found = self.objects[told.object]
        if told.read == "payload" and found.version is None:
            raise ValueError(f"{where}: without `version` a payload cannot be told from an older one; use `refetch`")
        final = told.change == "deleted" and found.by_key is None
        if (final or self._pays(told, found)) and found.hash.map is not None:
            # It is written beside the walks, and the map of a walk that is under way would not know.
            raise ValueError(
                f"{where}: {told.object} has a `hash.map`, which what webhooks store bypasses; declare `by_key` and "
                "use `refetch`"
            )
        if found.by_key is None and told.change != "deleted":
            raise ValueError(
                f"{where}: declare `by_key` of {told.object}: a record is read again where a webhook does not decide"
            )

    @model_validator(mode="after")
    def _tables_differ(self) -> Source:
        tables: dict[tuple[str, str], str] = {}
        for name in self.objects:
            other = tables.setdefault(self.table(name), name)
            if other != name:
                raise ValueError(f"objects {other} and {name} share the table {'.'.join(self.table(name))}")
        return self

    def by_account(self) -> Mapping[str, Source]:
        """By name: a source for each account, called ``{source}_{account}``; without accounts it is this one."""
        if not self.accounts:
            return {self.source: self}
        found = {f"{self.source}_{account}": (account, connection) for account, connection in self.accounts.items()}
        return {name: self._of_account(name, *each) for name, each in found.items()}

    def _of_account(self, name: str, account: str, connection: str) -> Source:
        objects = {each: found.of_account(account) for each, found in self.objects.items()}
        over = {"source": name, "connection": connection, "accounts": {}, "objects": objects}
        return self.model_copy(update={**over, "tags": (*self.tags, self.source)})

    def with_page_size(self, name: str, most: int) -> Source:
        """The source with smaller pages of one object, where it asks for a size."""
        return self.model_copy(update={"objects": {**self.objects, name: self.object(name).with_page_size(most)}})

    def pays(self, told: Told) -> bool:
        """Whether what such a webhook holds is stored, where its version says that it is newer; else the record is read
        by its key."""
        return self._pays(told, self.object(told.object))

    @staticmethod
    def _pays(told: Told, object: ApiObject) -> bool:
        if told.read is not None:
            return told.read == "payload"
        return told.record is not None and object.version is not None

    @property
    def told_of(self) -> tuple[str, ...]:
        """The objects that webhooks tell of, in the order of their names."""
        return tuple(sorted({told.object for each in self.webhooks.values() for told in each.types.values()}))

    def grace(self, name: str) -> Grace | None:
        """How long after a change of an object's record a webhook of it may come; None: none tells of the object."""
        telling = [
            (told, each) for each in self.webhooks.values() for told in each.types.values() if told.object == name
        ]
        if not telling:
            return None
        # A record that is told of may be a tombstone.
        tombs = self.object(name).deleted is not None
        changed = (each.grace for told, each in telling if told.change == "changed")
        deleted = (each.grace for told, each in telling if told.change == "deleted" or (tombs and told.record))
        return Grace(max(changed, default=None), max(deleted, default=None))

    @property
    def pool_name(self) -> str | None:
        """The pool of the source's tasks; None: the default one."""
        return None if self.pool is None else f"extract_{self.source}"

    def table(self, name: str) -> tuple[str, str]:
        """Schema and table of an object's records."""
        found = self.object(name)
        return found.schema_ or self.source, found.table or found.name

    def made(self, name: str) -> str:
        """A digest of what decides which records an object's copy holds, and where: not of how they are paged."""
        found = self.object(name)
        told: list[object] = [found.path, sorted(found.params.items()), found.records, self.table(name)]
        told += [found.method, found.body] if found.method != "GET" else []
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


def laid_over(below: Any, above: Any, *, pages: bool = False) -> Any:
    """``above`` where it says something, else ``below``; mappings are merged, everything else is replaced. So are
    `pages` of another kind, whose keys mean other things."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    if pages and "by" in below and above.get("by", below["by"]) != below["by"]:
        return above
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        merged[name] = laid_over(below[name], above[name], pages=name == "pages")
    return merged
