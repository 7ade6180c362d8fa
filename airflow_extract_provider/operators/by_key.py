"""Reads again, one by one, the records of an object that were noted for it."""

from __future__ import annotations

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.operators.walk import WalkOperator

__all__ = ["ByKeyOperator"]


class ByKeyOperator(WalkOperator):
    """Reads the noted records by their keys: those whose newest state a list could not decide. It is skipped where the
    object has no `by_key`; when nothing is noted, it asks the API for nothing. Parameters as
    :class:`~airflow_extract_provider.operators.walk.WalkOperator`."""

    walk = "by_key"

    def nothing_to_do(self, source: Source) -> str | None:
        """An object without `by_key` cannot be read so."""
        if source.object(self.object).by_key is not None:
            return None
        return f"{source.source}/{self.object} has no `by_key`: nothing says how one record is read by its key"
