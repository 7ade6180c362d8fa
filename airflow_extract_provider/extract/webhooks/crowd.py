"""Who must go where there are more connections than may be: those of strangers first.

A stranger's is one over which no delivery was taken yet. So those who send what is genuine are not shut out by however
many who do not.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Crowd", "Link"]


class Link(Protocol):
    """A connection. ``at_work``: a whole request is being served over it. ``rests_since``: it was answered last, or
    opened."""

    rests_since: float

    @property
    def at_work(self) -> bool:
        """Whether it may not be closed now."""
        ...

    def __hash__(self) -> int: ...


class Crowd:
    """The connections of a process."""

    def __init__(self) -> None:
        # In the order in which they have begun to rest: dict keeps it, and each is moved at once.
        self._strangers: dict[Link, None] = {}
        self._known: set[Link] = set()

    def __len__(self) -> int:
        return len(self._strangers) + len(self._known)

    def rests(self, link: Link) -> None:
        """A stranger's rests from now on."""
        self._strangers.pop(link, None)
        self._strangers[link] = None

    def trust(self, link: Link) -> None:
        """It is no stranger's any more."""
        self._strangers.pop(link, None)
        self._known.add(link)

    def leave(self, link: Link) -> None:
        """It is closed."""
        self._strangers.pop(link, None)
        self._known.discard(link)

    def least(self, new: Link) -> Link:
        """Which one goes: the stranger's that has rested longest, else the one that has; else ``new``, which has just
        come."""
        for each in self._strangers:
            if each is not new and not each.at_work:
                return each
        idle = [each for each in self._known if not each.at_work]
        return min(idle, key=lambda each: each.rests_since, default=new)
