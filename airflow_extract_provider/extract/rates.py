"""How often an API may be asked, as its documentation says it: ``20/s``, ``100/10s``, ``5000/h``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

__all__ = ["Limits", "Rate"]

_RATE = re.compile(r"(\d{1,10})\s*/\s*(\d{1,7})?\s*(s|m|min|h|d)", re.ASCII)
_WRITTEN = {"type": "string", "pattern": rf"^\s*{_RATE.pattern}\s*$"}
_SECOND = timedelta(seconds=1)
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1), "s": _SECOND}
_ALIASES = {"min": "m"}
_MOST = 1_000_000_000
_LONGEST = timedelta(days=31)
_MOST_RATES = 6
_EXAMPLE = "write requests per time with s, m, h or d, such as 20/s, 100/10s or 5000/h"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` requests in any window of ``per``, which is a whole number of seconds, 31 days at most.

    Raises ValueError: it is none of that.
    """

    count: int
    per: timedelta

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 1 <= self.count <= _MOST:
            raise ValueError(f"a rate of {self.count!r} requests: there must be between 1 and {_MOST}")
        if self.per < _SECOND or self.per > _LONGEST or self.per % _SECOND:
            raise ValueError("a rate counts the requests of a whole number of seconds, up to 31 days")

    @classmethod
    def parsed(cls, text: Any) -> Rate:
        """``20/s``, ``100/10s``, ``600/m`` (or ``min``), ``5000/h``, ``10000/d``.

        Raises ValueError: it is something else, nothing, or negative.
        """
        if isinstance(text, Rate):
            return text
        found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r} is no rate: {_EXAMPLE}")
        unit = _UNITS[_ALIASES.get(found[3], found[3])]
        times = int(found[2] or 1)
        # Checked before it is multiplied: a timedelta of ten million days cannot be made.
        if not _SECOND <= times * unit <= _LONGEST:
            raise ValueError(f"{text!r}: a rate counts the requests of a second or more, up to 31 days")
        return cls(int(found[1]), times * unit)

    def __str__(self) -> str:
        name, unit = next((name, unit) for name, unit in _UNITS.items() if not self.per % unit)
        times = self.per // unit
        return f"{self.count}/{times if times > 1 else ''}{name}"


def _limits(value: Any) -> Any:
    """One text or a list of them as rates; two for the same time cannot both be meant."""
    if value is None:
        raise ValueError(f"there is no rate: {_EXAMPLE}, or leave it out")
    rates = tuple(Rate.parsed(each) for each in (value if isinstance(value, (list, tuple)) else [value]))
    if len({rate.per for rate in rates}) < len(rates):
        raise ValueError(f"two rates for the same time: {', '.join(map(str, rates))}")
    if len(rates) > _MOST_RATES:
        raise ValueError(f"{len(rates)} rates: {_MOST_RATES} at most")
    return rates


Limits: TypeAlias = Annotated[
    tuple[Rate, ...],
    BeforeValidator(_limits),
    WithJsonSchema({"anyOf": [_WRITTEN, {"type": "array", "items": _WRITTEN, "maxItems": _MOST_RATES}]}),
]
"""One rate or several that all hold: `20/s`, or `[20/s, 10000/d]`."""
