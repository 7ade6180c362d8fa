"""How often the API may be asked: what its answers say of it, and whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Quota", "Told", "Turn"]


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of the quota, each None where it says nothing.

    ``pause`` is what it asks to wait before the next request, ``reset`` when the quota is full again, both in seconds
    after the answer; ``remaining`` of ``limit`` requests are left until then.
    """

    pause: float | None = None
    remaining: int | None = None
    limit: int | None = None
    reset: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A request's place among all of its quota.

    It may go out after ``wait`` seconds, and not more than ``grace`` seconds later than that (None: any time later): it
    would stand in the place of another one. ``number`` counts the quota's requests.
    """

    wait: float
    number: int
    grace: float | None = None


class Quota(Protocol):
    """Says when the next request may go out. The client waits; one thread at a time uses a quota."""

    def turn(self, most: float) -> Turn:
        """The next request's turn. It is taken, unless its ``wait`` is longer than ``most`` seconds."""
        ...

    def tell(self, turn: Turn, told: Told) -> None:
        """Note what the answer to a turn's request says."""
        ...

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1, as far as it is known; None: it is not."""
        ...
