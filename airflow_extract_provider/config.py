"""What an Airflow deployment decides for all sources: the section `[extract]` of its configuration.

Read when a DAG file is parsed or a task ends, never by the engine. The defaults are those that Airflow shows: see
:mod:`~airflow_extract_provider.get_provider_info`.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import conf

__all__ = [
    "dags_folder",
    "docs_url",
    "receiver_in_api_server",
    "receiver_public_url",
    "run_for",
    "sources_folder",
    "store_conn_id",
]

_SECTION = "extract"


def dags_folder() -> str:
    """Airflow's own folder of DAG files."""
    return str(conf.get("core", "dags_folder"))


def sources_folder() -> str:
    """The folder with the sources' files: the environment variable EXTRACT_SOURCES, else `sources`. A relative path
    counts from the DAG file."""
    return os.environ.get("EXTRACT_SOURCES") or str(conf.get(_SECTION, "sources", fallback="")) or "sources"


def store_conn_id() -> str:
    """The Postgres connection of the store."""
    return str(conf.get(_SECTION, "store_conn_id", fallback="")) or "extract_store"


def run_for() -> timedelta:
    """How long a slice of a walk lasts."""
    return timedelta(seconds=conf.getfloat(_SECTION, "run_for", fallback=1800))


def docs_url() -> str:
    """Where the project's docs can be read, without a slash at its end; empty: nowhere."""
    return str(conf.get(_SECTION, "docs_url", fallback="")).rstrip("/")


def receiver_in_api_server() -> bool:
    """Whether Airflow's API server receives webhooks."""
    return conf.getboolean(_SECTION, "receiver_in_api_server", fallback=False)


def receiver_public_url() -> str | None:
    """The API server's address as those know it who send webhooks; None: as each request says."""
    return str(conf.get(_SECTION, "receiver_public_url", fallback="")).rstrip("/") or None
