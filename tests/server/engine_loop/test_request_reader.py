"""Requests are read outside the engine thread, so that a slow one does not delay another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gradellm_engine import Engine, interruption_point
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.errors import ReadingFailedError
from gradellm_server.engine_loop.job import Job
from gradellm_server.engine_loop.request_reader import SHORT_BYTES

LONG = SHORT_BYTES + 1


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[EngineThread]:
    thread = EngineThread(engine, max_queued=8, max_queued_tokens=10_000)
    try:
        yield thread
    finally:
        await asyncio.to_thread(thread.stop)


async def answer_of(job: Job[Any]) -> Any:
    return await asyncio.wait_for(anext(aiter(job)), 10)


def no_events(event: object) -> list[Any]:
    return []


async def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        await asyncio.sleep(0.005)


def test_reading_neither_waits_for_a_pass_nor_runs_on_the_engine_thread(engine: Engine) -> None:
    async def work() -> None:
        async with running(engine) as thread:
            blocked = threading.Event()
            entered = threading.Event()

            def block(streams: object) -> None:
                entered.set()
                blocked.wait(10)

            engine.scheduler.before_pass = block
            stream = thread.submit(lambda engine: engine.generation_request("Once"), lambda event: [event])
            await asyncio.to_thread(entered.wait, 10)
            name = await answer_of(thread.submit(lambda engine: threading.current_thread().name, no_events))
            assert name.startswith("gradellm-read")
            stream.cancel()
            blocked.set()

    asyncio.run(work())


def test_a_long_request_does_not_delay_a_short_one(engine: Engine) -> None:
    async def work() -> None:
        async with running(engine) as thread:
            release = threading.Event()
            long = thread.submit(lambda engine: release.wait(10), no_events, LONG)
            assert await answer_of(thread.submit(lambda engine: "short", no_events, 10)) == "short"
            while thread.num_unfinished > 1:  # noqa: ASYNC110 (the reading thread is about to forget the short one)
                await asyncio.sleep(0.002)
            assert thread.num_unfinished == 1
            release.set()
            assert await answer_of(long) is True

    asyncio.run(work())


def test_reading_ends_when_its_caller_has_gone(engine: Engine) -> None:
    async def work() -> None:
        async with running(engine) as thread:
            looks: list[float] = []

            def tokenize_slowly(engine: Engine) -> str:
                while True:  # as a text that is tokenized in chunks
                    looks.append(time.monotonic())
                    interruption_point.get()()
                    time.sleep(0.001)

            job = thread.submit(tokenize_slowly, no_events)
            await until(lambda: bool(looks))
            job.cancel()
            assert thread.num_unfinished == 0
            assert await answer_of(thread.submit(lambda engine: "next", no_events)) == "next"
            count = len(looks)
            await asyncio.sleep(0.02)
            assert len(looks) == count

    asyncio.run(work())


class PanicError(BaseException):
    """As raised by native code: not an `Exception`."""


def test_a_native_panic_ends_its_own_request_alone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def panic(engine: Engine) -> str:
        raise PanicError("MARKER of the prompt")

    async def work() -> None:
        async with running(engine) as thread:
            with pytest.raises(ReadingFailedError):
                await answer_of(thread.submit(panic, no_events))
            assert await answer_of(thread.submit(lambda engine: "next", no_events)) == "next"
            assert thread.is_alive
            await until(lambda: thread.num_unfinished == 0)

    asyncio.run(work())
    assert "PanicError" in caplog.text
    assert "MARKER" not in caplog.text


def test_reading_that_does_not_end_ages_the_heartbeat(engine: Engine) -> None:
    async def work() -> None:
        async with running(engine) as thread:
            release = threading.Event()
            job = thread.submit(lambda engine: release.wait(10), no_events)
            await until(lambda: thread.heartbeat_age > 0.4)  # older than an idle engine's
            release.set()
            await answer_of(job)
            await until(lambda: thread.heartbeat_age < 0.4)

    asyncio.run(work())


def test_requests_being_read_fail_when_the_server_stops(engine: Engine) -> None:
    async def work() -> None:
        release = threading.Event()
        async with running(engine) as thread:
            job = thread.submit(lambda engine: release.wait(10), no_events)
        with pytest.raises(Exception, match="shutting down"):
            await answer_of(job)
        release.set()

    asyncio.run(work())
