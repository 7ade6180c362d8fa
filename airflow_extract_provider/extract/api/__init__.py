"""Talking to an API: how pages are asked for, fetched and cut into records."""
