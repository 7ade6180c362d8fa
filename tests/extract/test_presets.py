"""What presets ask for, where the vendor's documentation wants it in a way that is easily lost."""

from __future__ import annotations

import pytest

from airflow_extract_provider.extract.api.templates import by_key_request, request
from airflow_extract_provider.extract.sourcefile import parse_source

AIRFLOW = parse_source({"extends": "airflow"}, "the preset")
RUN = "manual__2026-11-26T22:39:17.819130+00:00"
ESCAPED = "manual__2026-11-26T22%3A39%3A17.819130%2B00%3A00"


@pytest.mark.parametrize("name", ["dag_runs", "task_instances"])
def test_airflow_pages_by_value_from_the_first_page_on(name: str) -> None:
    """An empty cursor asks for that; without one Airflow pages by offset, and tells no next cursor."""
    object = AIRFLOW.object(name)
    first, second = (request(object, {"token": token}, {}, 1) for token in (None, "kQI"))
    assert (first.path, second.path) == (f"{object.path.partition('?')[0]}?cursor=", f"{first.path}kQI")
    assert first.params == second.params == {"order_by": "id"}


@pytest.mark.parametrize(
    ("name", "key", "path"),
    [
        ("dag_runs", f'["busy","{RUN}"]', f"/busy/dagRuns/{ESCAPED}"),
        ("task_instances", f'["busy","{RUN}","takes","-1"]', f"/busy/dagRuns/{ESCAPED}/taskInstances/takes/-1"),
        ("dags", "busy", "/busy"),
    ],
)
def test_airflow_is_asked_for_one_record(name: str, key: str, path: str) -> None:
    """By the key of the copy, escaped; of a task that is not mapped, too, whose index is -1."""
    assert by_key_request(AIRFLOW.object(name), key, 1).path == f"/api/v2/dags{path}"
