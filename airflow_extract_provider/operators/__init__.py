"""What stands in a DAG. Operators only build and call; the work is done by the engine."""
