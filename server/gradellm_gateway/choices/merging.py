"""Several calls at a time as one stream, or one list of results. The first error ends all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """The items of all streams as they come, each with its stream's index. No stream is more than one item ahead."""
    waiting: dict[asyncio.Future[Item], int] = {}
    try:
        for index, stream in enumerate(streams):
            waiting[asyncio.ensure_future(anext(stream))] = index
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=waiting.__getitem__):
                index = waiting[future]
                try:
                    item = future.result()
                except StopAsyncIteration:
                    del waiting[future]
                    continue
                del waiting[future]
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
                yield index, item
    finally:
        await _cancelled(list(waiting))
        for stream in streams:
            await stream.aclose()


async def gathered(calls: Sequence[Awaitable[Item]]) -> list[Item]:
    """The results of all calls, in order."""
    futures = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*futures)
    finally:
        await _cancelled(futures)


async def _cancelled(futures: Sequence[asyncio.Future[Item]]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
