"""Reads an object of an API from its beginning to its end."""

from __future__ import annotations

from airflow_extract_provider.operators.walk import WalkOperator

__all__ = ["BackfillOperator"]


class BackfillOperator(WalkOperator):
    """Copies one object, from where its walk stands to its end. Once complete there is nothing to do, until ``reset``
    starts over. Parameters as :class:`~airflow_extract_provider.operators.walk.WalkOperator`."""

    walk = "backfill"
