"""The webhook receiver as a process of its own: `airflow-extract receiver`. It needs no part of Airflow to run."""
