"""Reads an object of an API again as a whole, and finds what nothing else tells of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.operators.arguments import count
from airflow_extract_provider.operators.walk import WalkOperator

__all__ = ["RebackfillOperator"]


class RebackfillOperator(WalkOperator):
    """Sweeps an object when that is due by its `sweep`: every record is read again, only what differs is written, and
    what is not there any more is deleted. In between it does nothing.

    A sweep goes on over slices, tries and runs. Its report is in XCom (``sweep``), in the task's log, and in the table
    `extract.sweep`. ``reset`` begins one now. It is skipped where the object has no `sweep`, unless ``reset``.
    Parameters as :class:`~airflow_extract_provider.operators.walk.WalkOperator`, and

    :param max_deletes: how many records one sweep of this run may delete, in place of what `sweep.max_deletes` says; a
        number or its text; None or nothing: as that says.

    Raises BackfillFirstError: the backfill has not come to its end; with ``next_run_at`` the task is skipped instead.
    Raises TooManyDeletesError: the list does not hold more of the stored records than may be deleted; nothing was.
    """

    walk = "rebackfill"
    template_fields: Sequence[str] = (*WalkOperator.template_fields, "max_deletes")

    def __init__(self, *, max_deletes: int | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_deletes = max_deletes

    def nothing_to_do(self, source: Source) -> str | None:
        """An object without `sweep` is swept only when somebody asks for it."""
        if source.object(self.object).sweep is not None or self.starts_over:
            return None
        return f"{source.source}/{self.object} has no `sweep`: nothing says how often everything is read again"

    def given(self) -> dict[str, Any]:
        """What this walk alone is given."""
        return {"max_deletes": count("max_deletes", self.max_deletes)}
