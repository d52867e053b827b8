"""`AsyncClient.follow` against the fake server; a real one: `tests/server/rpc/clients/test_follow.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from google.rpc import code_pb2

from client.conftest import FakeServer
from gradellm import AsyncClient, AsyncFollowing, InvalidRequestError, Retry, UnavailableError

RETRY = Retry(attempts=3, initial_seconds=0.01, max_seconds=0.02)


def run(fake: FakeServer, use: Callable[[AsyncFollowing], Awaitable[None]], retry: Retry | None = RETRY) -> None:
    async def follow() -> None:
        async with AsyncClient(fake.target, retry=retry) as client, client.follow("Once") as following:
            await use(following)

    asyncio.run(follow())


def test_events_and_result(fake: FakeServer) -> None:
    async def use(following: AsyncFollowing) -> None:
        await following.append([5, 6])
        await following.append([7], [-1.0])
        await following.finish()
        events = [event async for event in following]
        explanation = await following.result()
        assert [event async for event in following] == []
        assert events[-1].finished is not None
        assert [token.id for token in explanation.tokens] == [5, 6, 7]
        assert len(explanation.attributions) == 3

    run(fake, use)


def test_poll(fake: FakeServer) -> None:
    async def use(following: AsyncFollowing) -> None:
        await following.append([5])
        await following.result()
        assert len(following.poll()) == 5
        assert following.poll() == []

    run(fake, use)


def test_continues_after_a_failure(fake: FakeServer) -> None:
    fake.fail(code_pb2.UNAVAILABLE, "draining")
    fake.fails_after = 2

    async def use(following: AsyncFollowing) -> None:
        await following.append([5, 6, 7], [-1.0, -2.0, -3.0])
        explanation = await following.result()
        assert [row.token_index for row in explanation.attributions] == [0, 1, 2]

    run(fake, use)
    starts = [request.start for request in fake.followed if request.HasField("start")]
    first, second = (list(start.completion_ids) for start in starts)
    assert first == []
    assert second == [5, 6][: len(second)]  # rows that were not read are explained again


def test_a_failure_is_raised_by_every_call(fake: FakeServer) -> None:
    fake.fail(code_pb2.UNAVAILABLE, "draining")
    fake.fails_after = 1

    async def use(following: AsyncFollowing) -> None:
        await following.append([5])
        with pytest.raises(UnavailableError, match="draining"):
            [_ async for _ in following]
        with pytest.raises(UnavailableError, match="draining"):
            await following.result()
        with pytest.raises(UnavailableError, match="draining"):
            await following.append([6])

    run(fake, use, retry=None)


def test_leaving_cancels(fake: FakeServer) -> None:
    async def use(following: AsyncFollowing) -> None:
        await anext(aiter(following))
        await following.aclose()
        assert [event async for event in following] == []
        with pytest.raises(InvalidRequestError, match="logprobs: are 1 for 2 ids"):
            await following.append([5, 6], [-1.0])

    run(fake, use)
