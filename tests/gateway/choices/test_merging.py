"""Several streams as one: all items, their order within a stream, and an end of all with the first error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gradellm_gateway.choices.merging import gathered, merged, numbered


class Streams:
    """Streams of numbers, which note that they are closed."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.sent: list[int] = []

    async def stream(self, index: int, count: int, *, fails: bool = False) -> AsyncGenerator[int, None]:
        try:
            for item in range(count):
                await asyncio.sleep(0.001 * (1 + index))
                self.sent.append(index)
                yield item
            if fails:
                raise ValueError(f"stream {index}")
        finally:
            self.closed.append(index)


def test_all_items_come_in_their_order() -> None:
    async def run() -> list[tuple[int, int]]:
        streams = Streams()
        return [
            item async for item in merged([numbered(index, streams.stream(index, 3 + index)) for index in range(4)])
        ]

    items = asyncio.run(run())
    assert len(items) == 3 + 4 + 5 + 6
    for index in range(4):
        assert [item for stream, item in items if stream == index] == list(range(3 + index))
    assert [stream for stream, _ in items] != sorted(stream for stream, _ in items)


def test_few_streams_run_at_a_time() -> None:
    running, most = 0, 0

    async def numbers(start: int) -> AsyncGenerator[int, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for number in range(start, start + 5):
            await asyncio.sleep(0)
            yield number
        running -= 1

    async def run() -> list[int]:
        return [item async for item in merged([numbers(10 * each) for each in range(9)], limit=3)]

    assert sorted(asyncio.run(run())) == [10 * each + number for each in range(9) for number in range(5)]
    assert (most, running) == (3, 0)


def test_an_error_ends_all_streams() -> None:
    async def run() -> list[int]:
        streams = Streams()
        with pytest.raises(ValueError, match="stream 0"):
            async for _ in merged(
                [streams.stream(0, 1, fails=True), streams.stream(1, 10**6), streams.stream(2, 10**6)]
            ):
                pass
        return streams.closed

    assert sorted(asyncio.run(run())) == [0, 1, 2]


def test_leaving_ends_all_streams_and_none_runs_ahead() -> None:
    async def run() -> Streams:
        streams = Streams()
        stream = merged([streams.stream(index, 10**6) for index in range(3)])
        for _ in range(3):
            await anext(stream)
        await asyncio.sleep(0.05)
        await stream.aclose()
        return streams

    streams = asyncio.run(run())
    assert sorted(streams.closed) == [0, 1, 2]
    assert len(streams.sent) <= 7  # one of each stream, and one that waits


def test_results_are_in_order_and_an_error_cancels_the_rest() -> None:
    cancelled = []

    async def result(index: int, seconds: float) -> int:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        if index == 7:
            raise ValueError("seven")
        return index

    async def run() -> None:
        assert await gathered([result(0, 0.02), result(1, 0.01), result(2, 0.0)]) == [0, 1, 2]
        with pytest.raises(ValueError, match="seven"):
            await gathered([result(0, 60), result(7, 0.001), result(2, 60)])

    asyncio.run(run())
    assert sorted(cancelled) == [0, 2]
