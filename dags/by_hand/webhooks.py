"""The DAG that applies the webhooks of one source, written by hand: copy it into your DAGs folder, beside `sources`.

`make_dags` makes the same of a source with `webhooks`; take that, or this.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, AssetOrTimeSchedule, DeltaTriggerTimetable

from airflow_extract_provider.assets import inbox_of
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.operators.apply_inbox import ApplyInboxOperator

crm = load_source(Path(__file__).parent / "sources" / "crm.yaml")

with DAG(
    "crm_events",
    # As they come; and every few minutes in any case, since what has started a run that fails does not come again.
    schedule=AssetOrTimeSchedule(timetable=DeltaTriggerTimetable(timedelta(minutes=5)), assets=inbox_of("crm")),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3},
):
    ApplyInboxOperator(task_id="apply", source=crm)
