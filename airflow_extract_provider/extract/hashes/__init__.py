"""Hashes of records: by which a copy is told from another without reading it."""
