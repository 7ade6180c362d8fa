"""The demo: a real API, a real Postgres and a real Airflow on this machine, and proof of equality.

``run.py`` tells the story; the other modules are its parts, which the end-to-end tests use too. Not shipped.
"""
