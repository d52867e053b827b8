"""What is the asyncio client's own: tasks, event loops, closing. Its calls are tested with those of `Client`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from gradellm import AsyncClient, CallCancelledError, ClientClosedError, Retry

if TYPE_CHECKING:
    from client.conftest import FakeServer


def test_async_break_cancels(fake: FakeServer) -> None:
    async def leave() -> bool:
        async with AsyncClient(fake.target, retry=None) as client:
            async for _ in client.generate("Once"):
                break
            return await asyncio.to_thread(fake.cancelled.wait, 10)  # while the client is open still

    fake.hold.set()
    assert asyncio.run(leave())


def test_async_task_cancelling_cancels(fake: FakeServer) -> None:
    async def leave() -> None:
        async with AsyncClient(fake.target, retry=None) as client:
            task = asyncio.create_task(client.explain("Once"))
            await asyncio.to_thread(fake.received.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.cancelled.wait, 10)

    fake.hold.set()
    asyncio.run(leave())


def test_closing_the_async_client_fails_running_calls(fake: FakeServer) -> None:
    async def close_meanwhile() -> None:
        client = AsyncClient(fake.target, retry=None)
        task = asyncio.create_task(client.explain("Once"))
        await asyncio.to_thread(fake.received.wait, 10)
        await client.close()
        with pytest.raises(CallCancelledError, match="closed"):
            await task

    fake.hold.set()
    asyncio.run(close_meanwhile())


def test_closing_the_client_ends_the_calls_of_its_other_callers(fake: FakeServer) -> None:
    """`with_token` shares the connections, though none is made before the first call."""

    async def close_meanwhile() -> None:
        client = AsyncClient(fake.target, retry=None)
        other = client.with_token("t")
        task = asyncio.create_task(other.explain("Once"))
        await asyncio.to_thread(fake.received.wait, 10)
        await client.close()
        with pytest.raises(CallCancelledError, match="closed"):
            await task
        with pytest.raises(ClientClosedError):
            await other.server_info()

    fake.hold.set()
    asyncio.run(close_meanwhile())
    assert fake.cancelled.wait(10)


def test_a_closed_async_client_raises(fake: FakeServer) -> None:
    async def use() -> None:
        client = AsyncClient(fake.target, retry=None)
        events = client.generate("Once")
        await client.close()  # before it has connected
        await client.close()
        with pytest.raises(ClientClosedError, match="closed"):
            client.generate("Once")
        with pytest.raises(ClientClosedError, match="closed"):
            await anext(events)
        with pytest.raises(ClientClosedError, match="closed"):
            await client.server_info()

    asyncio.run(use())
    assert fake.requests == []


def test_closing_the_client_ends_the_wait_before_a_retry(fake: FakeServer) -> None:
    async def close_meanwhile() -> None:
        waits = asyncio.Event()
        client = AsyncClient(fake.target, retry=Retry(on_wait=lambda *_: waits.set()))
        task = asyncio.create_task(client.explain("Once"))
        await waits.wait()
        began = time.monotonic()
        await client.close()
        with pytest.raises(ClientClosedError):
            await task
        assert time.monotonic() - began < 1  # the server says 1.5 s

    fake.overload()
    asyncio.run(close_meanwhile())


def test_a_client_that_is_made_outside_the_event_loop(fake: FakeServer) -> None:
    client = AsyncClient(fake.target, retry=None)

    async def use() -> str:
        async with client:
            return (await client.explain("Once")).text

    assert asyncio.run(use()) == " there wasn't"


def test_calls_of_one_client_run_at_the_same_time(fake: FakeServer) -> None:
    async def use() -> list[str]:
        async with AsyncClient(fake.target, retry=None) as client:
            explanations = await asyncio.gather(*(client.explain(f"Once {i}") for i in range(3)))
            return [explanation.text for explanation in explanations]

    assert asyncio.run(use()) == [" there wasn't"] * 3
    assert len(fake.requests) == 3
