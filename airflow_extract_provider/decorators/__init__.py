"""What a DAG writes in front of a function."""
