"""What holds secrets, and neither shows them nor lets them be written down."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Unshown"]


class Unshown:
    """Holds secrets: its repr does not tell them, and it cannot be pickled. A pickled login lies on somebody's disk."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and is not pickled")
