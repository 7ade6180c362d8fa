"""Brings what has changed in an object of an API since the last time."""

from __future__ import annotations

from airflow_extract_provider.operators.walk import WalkOperator

__all__ = ["IncrementalOperator"]


class IncrementalOperator(WalkOperator):
    """Brings an object's changes: one lap, from a little before the instant up to which the copy is complete, to the
    end of what the API gives. The backfill comes first: it says where the first lap begins.

    The summary's ``complete_to`` and ``lag_seconds`` tell up to when the copy equals the API. ``reset`` begins again
    where the backfill has ended. Deletes are seen only as far as the API shows them in its lists. Parameters as
    :class:`~airflow_extract_provider.operators.walk.WalkOperator`.

    Raises BackfillFirstError: the backfill has not come to its end; with ``next_run_at`` the task is skipped instead.
    Raises SourceError: nothing in the source says how the API is asked for changes.
    """

    walk = "incremental"
