"""Connections of Airflow, as the engine needs them."""
