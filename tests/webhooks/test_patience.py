"""One timer for all: each ends in its own time, and nothing else is taken for that."""

from __future__ import annotations

import asyncio
import time

import pytest

from airflow_extract_provider.extract.webhooks.patience import Patience


async def _within(patience: Patience, seconds: float) -> str:
    patience.begin()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if not patience.is_over():
            raise
        return "over"
    finally:
        patience.end()
    return "done"


def test_each_ends_in_its_own_time() -> None:
    """Those that began later later; those that are done are left alone, also when they begin again."""

    async def begun_after(patience: Patience, pause: float, seconds: float) -> tuple[str, float]:
        await asyncio.sleep(pause)
        begun = time.monotonic()
        return await _within(patience, seconds), time.monotonic() - begun

    async def main() -> None:
        patience = Patience(0.3)
        asked = [(0.0, 60.0), (0.1, 60.0), (0.2, 0.01), (0.2, 60.0), (0.7, 60.0)]
        found = await asyncio.gather(*(begun_after(patience, *each) for each in asked))
        assert [what for what, _ in found] == ["over", "over", "done", "over", "over"]
        assert all(seconds >= 0.29 for what, seconds in found if what == "over")
        assert [await _within(patience, 0.01) for _ in range(3)] == ["done"] * 3

    asyncio.run(main())


def test_whoever_else_cancels_is_obeyed() -> None:
    """A server that stops, for one."""

    async def main() -> None:
        task = asyncio.create_task(_within(Patience(60), 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_it_goes_on_in_another_loop() -> None:
    """The timer of one that has ended never fires."""
    patience = Patience(0.1)
    for _ in range(2):
        assert asyncio.run(_within(patience, 0.0)) == "done"
        assert asyncio.run(_within(patience, 60.0)) == "over"
