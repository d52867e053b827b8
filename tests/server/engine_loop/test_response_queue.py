"""The response queue: order, end, errors, backpressure and its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from gradellm_server.engine_loop.errors import ShuttingDownError, SlowConsumerError
from gradellm_server.engine_loop.response_queue import MAX_UNREAD_BATCHES, ResponseQueue


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def new_queue(reader_timeout_seconds: float = 60.0, **callbacks: Callable[[], object]) -> ResponseQueue[int]:
    options: dict[str, Any] = {"on_space": Mock(), "on_slow_reader": Mock(), "on_loop_closed": Mock(), **callbacks}
    return ResponseQueue(reader_timeout_seconds, **options)


async def read_all(queue: ResponseQueue[int]) -> list[int]:
    return [response async for response in queue]


def test_batches_come_in_order_until_the_end() -> None:
    async def test() -> None:
        queue = new_queue()
        queue.put([1, 2])
        queue.put([])
        queue.put([3])
        queue.end()
        assert await read_all(queue) == [1, 2, 3]

    run(test)


def test_an_error_is_raised_after_the_queued_items() -> None:
    async def test() -> None:
        queue = new_queue()
        queue.put([1])
        queue.end(ShuttingDownError())
        reader = aiter(queue)
        assert await anext(reader) == 1
        with pytest.raises(ShuttingDownError):
            await anext(reader)

    run(test)


def test_a_full_queue_has_space_again_once_it_is_read() -> None:
    async def test() -> None:
        on_space = Mock()
        queue = new_queue(on_space=on_space)
        for number in range(MAX_UNREAD_BATCHES):
            assert queue.has_space
            queue.put([number])
        assert not queue.has_space
        assert await anext(aiter(queue)) == 0
        assert queue.has_space
        on_space.assert_called_once()

    run(test)


def test_an_unread_batch_times_out_and_abort_replaces_it() -> None:
    async def test() -> None:
        slow = asyncio.Event()
        queue = new_queue(0.1, on_slow_reader=slow.set)
        queue.put([1])
        reader = aiter(queue)
        assert await anext(reader) == 1
        queue.put([2])
        await slow.wait()
        queue.abort(SlowConsumerError(0.1))
        queue.put([3])
        with pytest.raises(SlowConsumerError):
            await anext(reader)

    run(test)


def test_a_closed_event_loop_is_reported() -> None:
    queues: list[ResponseQueue[int]] = []
    on_loop_closed = Mock()

    async def test() -> None:
        queues.append(new_queue(on_loop_closed=on_loop_closed))

    run(test)
    queues[0].put([1])
    on_loop_closed.assert_called_once()
