"""Airflow's pools, as the source files want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from airflow_extract_provider.extract.source import Source

__all__ = ["pools"]


def pools(sources: Iterable[Source]) -> Iterator[str]:
    """Make the pools that are missing, and tell of each: tasks of a pool that is not there wait for ever. One that is
    there stays as it is, since somebody may have narrowed it."""
    wanted = {source.pool_name: source for source in sources if source.pool_name is not None}
    if not wanted:
        return
    # A command runs beside Airflow's database, as `airflow pools` does.
    from airflow.models.pool import Pool

    for name, source in wanted.items():
        slots, found = source.pool or 1, Pool.get_pool(name)
        if found is None:
            what = f"tasks of the source {source.source}"
            Pool.create_or_update_pool(name, slots=slots, description=what, include_deferred=False)
            yield f"pool {name}: made, {slots} slots"
        elif found.slots != slots:
            yield f"pool {name}: has {found.slots} slots, where the source file says {slots}; left as it is"
