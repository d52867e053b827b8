"""Streams merged into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gradellm_gateway.completions.choices import merged


class _Streams:
    """Streams of numbers that count how many of them run."""

    def __init__(self) -> None:
        self.running = self.most = self.closed = 0

    async def numbers(self, start: int, count: int, *, fails: bool = False) -> AsyncGenerator[int, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for number in range(start, start + count):
                await asyncio.sleep(0)
                yield number
            if fails:
                raise ValueError("no more")
        finally:
            self.running -= 1
            self.closed += 1


def test_all_items_come_and_few_streams_run_at_a_time() -> None:
    streams = _Streams()

    async def run() -> list[int]:
        return [item async for item in merged([streams.numbers(10 * each, 5) for each in range(9)], limit=3)]

    found = asyncio.run(run())
    assert sorted(found) == [10 * each + number for each in range(9) for number in range(5)]
    assert [item for item in found if item < 10] == [0, 1, 2, 3, 4]
    assert (streams.most, streams.running, streams.closed) == (3, 0, 9)


def test_one_failure_ends_all() -> None:
    streams = _Streams()

    async def run() -> None:
        endless = streams.numbers(0, 1 << 30)
        async for _ in merged([endless, streams.numbers(0, 2, fails=True)]):
            pass

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(run())
    assert streams.running == 0


def test_closing_ends_all() -> None:
    streams = _Streams()

    async def run() -> None:
        items = merged([streams.numbers(0, 1 << 30) for _ in range(4)])
        assert await anext(items) == 0
        await items.aclose()

    asyncio.run(run())
    assert streams.running == 0
