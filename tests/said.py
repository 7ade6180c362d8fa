"""What one logger has said: threads of other tests may end late, and have a word of their own to say."""

from __future__ import annotations

import logging

import pytest

__all__ = ["said_by"]


def said_by(logger: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of the logger of that name, in order."""
    return [each for each in caplog.records if each.name == logger]
