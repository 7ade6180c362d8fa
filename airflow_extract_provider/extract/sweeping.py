"""How often an object is read again as a whole, and how much of its copy one such reading may delete."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from airflow_extract_provider.extract.paging import Duration, Frozen

__all__ = ["ALLOWED", "Allowance", "Deletes", "Sweep"]

_FEW = 5
"""Records of which a share may always delete so many: a tenth of a short list is less than one."""
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)\s*%", re.ASCII)
_SHORTEST = timedelta(seconds=1)
_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "us": timedelta(microseconds=1),
}


@dataclass(frozen=True, slots=True)
class Deletes:
    """How many records a sweep may delete: ``count``, or a ``share`` of the stored ones in thousandths of a percent; at
    least five then, if that is not more than half."""

    count: int | None = None
    share: int | None = None

    def allowed(self, stored: int) -> int:
        """How many that is where so many records are stored."""
        if self.count is not None:
            return min(self.count, stored)
        return max(min(_FEW, stored // 2), stored * self.share // 100_000) if self.share else 0

    def __str__(self) -> str:
        return str(self.count) if self.count is not None else f"{(self.share or 0) / 1000:g} %"


def _deletes(value: Any) -> Any:
    """``500``, or ``10%`` of the stored records."""
    if isinstance(value, Deletes):
        return value
    if type(value) is int and value >= 0:
        return Deletes(count=value)
    found = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or float(found[1]) > 100:
        raise ValueError("max_deletes is a number of records such as 500, or a part of those stored such as 10%")
    return Deletes(share=round(float(found[1]) * 1000))


Allowance: TypeAlias = Annotated[
    Deletes,
    BeforeValidator(_deletes),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": rf"^\s*{_SHARE.pattern}\s*$"}]}
    ),
]


ALLOWED = Deletes(share=10_000)
"""What a sweep may delete if nothing else is said."""


class Sweep(Frozen):
    """Reading everything again: what finds deletes, and changes that the API does not tell of."""

    every: Duration = Field(description="how long after the beginning of the last complete reading a sweep is due")
    max_deletes: Allowance = Field(
        default=ALLOWED,
        description="the most records that a sweep may delete without being asked to: 500, or 10% of those stored",
    )

    @property
    def cadence(self) -> str:
        """How often, as a source file says it: ``7d``."""
        name, unit = next((name, unit) for name, unit in _UNITS.items() if not self.every % unit)
        return f"{self.every // unit}{name}"

    @field_validator("every")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if value < _SHORTEST:
            raise ValueError("every is a second at least")
        return value
