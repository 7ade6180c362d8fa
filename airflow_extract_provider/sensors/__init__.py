"""What waits in a DAG for something to do."""
