"""Finds an Airflow connection, or says how to make it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_extract_provider.extract.errors import ConnectionMissingError

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["find_connection"]


def find_connection(conn_id: str, example: str) -> Connection:
    """The connection of that id; ``example`` is the rest of the command that would make it.

    Raises ConnectionMissingError: there is none, or Airflow's API server cannot say: Airflow reports both alike.
    """
    try:
        found: Connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConnectionMissingError(
            f"Airflow has no connection {conn_id!r}.",
            todo=f"Make it under Admin > Connections, or with `airflow connections add {conn_id} {example}`.",
        ) from None
    return found
