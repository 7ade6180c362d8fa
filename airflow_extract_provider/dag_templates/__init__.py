"""Makes the DAGs of a source: everything in them follows from its file.

Nothing is read at parse time but those files, and nothing in a DAG depends on the clock or the machine: Airflow makes a
new version of a DAG whenever its form differs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_extract_provider.dag_templates.arguments import task_arguments
from airflow_extract_provider.dag_templates.backfill import backfill_dag
from airflow_extract_provider.dag_templates.relay import relay_dag
from airflow_extract_provider.dag_templates.sync import sync_dag
from airflow_extract_provider.dag_templates.webhooks import webhooks_dag
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources, told_apart

__all__ = ["make_dags"]


def make_dags(
    sources: str | os.PathLike[str] | Mapping[str, Source], *, default_args: Mapping[str, Any] | None = None
) -> dict[str, DAG]:
    """The DAGs of some sources, by id: of each one its ``{source}_sync``, which runs by the source's `schedule`; its
    ``{source}_backfill``, which runs when somebody asks for it, and by `windows`; with `relay` its ``{source}_relay``;
    and with `webhooks` its ``{source}_webhooks``, which applies them as they come. Of a source with `accounts`: of each
    account.

    ``sources``: a folder of YAML files, relative to the file that calls, or sources by name. ``default_args`` are for
    all tasks, over the retries and the like that are set here. Use it in a DAG file as
    ``globals().update(make_dags("sources"))``.

    Raises SourceError: a file is wrong, or the folder holds none.
    """
    if not isinstance(sources, Mapping):
        # The caller's file, not the working directory, which differs between Airflow's components.
        beside = Path(sys._getframe(1).f_globals.get("__file__", "")).parent
        sources = load_sources(beside / sources)
    arguments = task_arguments(default_args or {})
    found = told_apart([each for source in sources.values() for each in source.by_account().values()])
    return {dag.dag_id: dag for source in found.values() for dag in _dags(source, arguments)}


def _dags(source: Source, arguments: Mapping[str, Any]) -> Iterator[DAG]:
    yield sync_dag(source, arguments)
    yield backfill_dag(source, arguments)
    if source.relay is not None:
        yield relay_dag(source, source.relay, arguments)
    if source.webhooks:
        yield webhooks_dag(source, arguments)
