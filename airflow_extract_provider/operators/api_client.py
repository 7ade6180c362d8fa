"""What asks the API for an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.operators.arguments import interval

if TYPE_CHECKING:
    from airflow_extract_provider.extract.api.client import ApiClient

__all__ = ["api_client"]


@contextmanager
def api_client(
    source: Source, store_conn_id: str, api_conn_id: str | None, longest_wait: timedelta | float | str
) -> Iterator[ApiClient]:
    """What asks the API, logged in, in the quota that all tasks of the source share. ``api_conn_id``: None: the
    connection that the source names. ``longest_wait``: how long a request may wait for its turn."""
    # Here, since a DAG file that only names an operator should not load drivers and clients.
    from airflow_extract_provider.hooks.api import RestApiHook
    from airflow_extract_provider.hooks.store import StoreHook

    store = StoreHook(store_conn_id).connect
    longest = interval("longest_wait", longest_wait, least=timedelta()).total_seconds()
    api = RestApiHook(api_conn_id or source.connection)
    with closing(api.client(source, store=store, longest_wait=longest)) as client:
        yield client
