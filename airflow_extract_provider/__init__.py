"""Copies REST APIs into Postgres inside Airflow, without ever losing a record.

Nothing is imported here: Airflow imports this module while it discovers providers, in every one of its processes.
Start reading at :mod:`airflow_extract_provider.extract.pipeline`.
"""

__version__ = "0.1.0"
