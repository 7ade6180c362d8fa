"""Postgres: the records, and the books about what has been covered. A module's statements are in the .sql beside it."""
