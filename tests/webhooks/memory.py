"""A keep for tests of what stands before it."""

from __future__ import annotations

from airflow_extract_provider.extract.incoming import Incoming

__all__ = ["Memory"]


class Memory:
    """A keep that remembers."""

    def __init__(self) -> None:
        self.kept: list[Incoming] = []

    async def put(self, incoming: Incoming) -> bool:
        """Keep it."""
        self.kept.append(incoming)
        return True
