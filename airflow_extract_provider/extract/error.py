"""What every error of the engine holds, and the three kinds of them; :mod:`~.errors` has them all."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["ExtractError", "FixConfig", "StopAndLook", "TryAgain"]

_PLACE = ("source", "object", "walk", "page", "record", "key", "position", "until")


class ExtractError(Exception):
    """What stopped a run.

    ``what`` happened, ``kept`` tells what is safe, ``todo`` what a person does next. ``source``, ``object``, ``walk``,
    ``page`` (counted from 1 since the walk began), ``record`` (counted from 1 on the page), ``key`` and ``position``
    say where, ``until`` (aware) how long, each None when it does not apply.
    """

    anchor: str = "errors"
    """The error's place in docs/errors.md."""

    def __init__(self, what: str, *, kept: str = "", todo: str = "", **place: Any) -> None:
        if unknown := set(place) - set(_PLACE):
            raise TypeError(f"{type(self).__name__} has no attribute {sorted(unknown)}")
        super().__init__(what)
        self.what, self.kept, self.todo = what, kept, todo
        self.place: Mapping[str, Any] = place
        for name in _PLACE:
            setattr(self, name, place.get(name))

    source: str | None
    object: str | None
    walk: str | None
    page: int | None
    record: int | None
    key: str | None
    position: Any
    until: datetime | None

    def at(self, *, kept: str = "", **place: Any) -> ExtractError:
        """The same error, with what the caller knows filled in where the raiser did not."""
        known = {**place, **{name: value for name, value in self.place.items() if value is not None}}
        return type(self)(self.what, kept=self.kept or kept, todo=self.todo, **known)

    def without_key(self) -> ExtractError:
        """The same error for people who may not see keys of records; so without the position, which may hold some."""
        what = self.what.replace(repr(self.key), "***").replace(self.key, "***") if self.key else self.what
        place = {name: value for name, value in self.place.items() if name not in ("key", "position")}
        return type(self)(what, kept=self.kept, todo=self.todo, **place)

    def __str__(self) -> str:
        lines = [f"{self._where()}{self.what}"]
        if self.kept:
            lines.append(f"  Kept: {self.kept}")
        lines.append(f"  {self.todo}{'   ' if self.todo else ''}docs/errors.md#{self.anchor}")
        return "\n".join(lines)

    def _where(self) -> str:
        names = [str(part) for part in (self.source, self.object) if part]
        where = "/".join(names)
        if self.page is not None:
            where += f" page {self.page}"
        if self.record is not None:
            where += f", record {self.record}"
        return f"{where.strip(' ,')}: " if where else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Airflow moves exceptions between processes; keyword arguments are lost by the default reduction.
        return (_rebuild, (type(self), self.what, self.kept, self.todo, dict(self.place)))


def _rebuild(kind: type[ExtractError], what: str, kept: str, todo: str, place: dict[str, Any]) -> ExtractError:
    return kind(what, kept=kept, todo=todo, **place)


class TryAgain(ExtractError):
    """The same run may succeed later."""


class FixConfig(ExtractError):
    """A person has to change a file, a connection or a right first."""


class StopAndLook(ExtractError):
    """Going on could lose records; a person looks first."""
