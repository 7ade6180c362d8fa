"""What the commands `airflow extract ...` do."""
