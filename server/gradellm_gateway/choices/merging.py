"""Several calls at a time as one stream, or one list of results. The first error ends all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar

MAX_CONCURRENT = 8  # choices of one request: all of a large one at once would fill the server's queue

Item = TypeVar("Item")


async def merged(
    streams: Sequence[AsyncGenerator[Item, None]], limit: int = MAX_CONCURRENT
) -> AsyncGenerator[Item, None]:
    """Yield the items of several streams as they come, at most `limit` streams at a time.

    The first exception of a stream ends all; closing the generator does, too.
    """
    items: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(maxsize=1)
    waiting = iter(streams)

    async def work() -> None:
        try:
            for stream in waiting:
                async with aclosing(stream):
                    async for item in stream:
                        await items.put(item)
            await items.put(None)
        except Exception as error:
            await items.put(error)

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(streams)))]
    left = len(workers)
    try:
        while left:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        for worker in workers:
            with suppress(asyncio.CancelledError):
                await worker


async def numbered(index: int, stream: AsyncGenerator[Item, None]) -> AsyncGenerator[tuple[int, Item], None]:
    """Yield a stream's items, each with its index."""
    async with aclosing(stream):
        async for item in stream:
            yield index, item


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
