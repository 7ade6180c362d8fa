"""The engine: pages in, rows and ledger out. Nothing in here imports Airflow.

Start reading at :mod:`~airflow_extract_provider.extract.pipeline`.
"""
