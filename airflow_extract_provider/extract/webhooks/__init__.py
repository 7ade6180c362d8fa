"""Webhooks: verified and stored as they come (receiver), then applied (drain)."""
