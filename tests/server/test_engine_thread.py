"""The queue and the turns, with work that is scripted rather than computed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from gradellm_engine import Engine
from gradellm_server.engine_thread import UNREAD_BATCHES, EngineThread, Job, QueueFullError, ShuttingDownError

NO_ENGINE = cast(Engine, None)


class Script:
    """Work of a number of units; each waits for `gate`, and what happened is noted."""

    def __init__(self, units: int, *, gate: threading.Event | None = None, error_at: int | None = None) -> None:
        self.units, self.gate, self.error_at = units, gate, error_at
        self.done = 0
        self.closed = threading.Event()

    def __call__(self, engine: Engine, queue_seconds: float) -> Iterator[Sequence[int]]:
        try:
            for unit in range(self.units):
                if self.gate is not None:
                    self.gate.wait(10)
                if unit == self.error_at:
                    raise RuntimeError("this unit fails")
                self.done += 1
                yield [unit]
        finally:
            self.closed.set()


@asynccontextmanager
async def thread(max_running: int = 2, max_queued: int = 1) -> AsyncIterator[EngineThread]:
    made = EngineThread(NO_ENGINE, max_running=max_running, max_queued=max_queued)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.stop)


async def events(job: Job[int]) -> list[int]:
    return [event async for event in job]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (what is waited for happens on another thread)
        await asyncio.sleep(0.002)


def test_a_job_yields_its_events_in_order() -> None:
    async def test() -> None:
        async with thread() as engine:
            assert await events(engine.submit(Script(5))) == [0, 1, 2, 3, 4]
            await until(lambda: engine.num_running == 0)

    run(test)


def test_running_jobs_take_turns() -> None:
    async def test() -> None:
        order: list[str] = []

        def named(name: str) -> Callable[[Engine, float], Iterator[Sequence[int]]]:
            def work(engine: Engine, queue_seconds: float) -> Iterator[Sequence[int]]:
                for unit in range(4):
                    order.append(name)
                    yield [unit]

            return work

        gate = threading.Event()
        async with thread(max_running=3) as engine:
            holder = engine.submit(Script(1, gate=gate))  # holds the engine until both others are in
            await until(lambda: engine.num_running == 1)
            jobs = [engine.submit(named(name)) for name in "ab"]
            gate.set()
            await asyncio.gather(*(events(job) for job in (holder, *jobs)))
        assert order == list("abababab")

    run(test)


def test_a_full_queue_refuses_at_once_and_takes_again_when_a_place_is_free() -> None:
    async def test() -> None:
        gate = threading.Event()
        async with thread(max_running=1, max_queued=1) as engine:
            first = engine.submit(Script(1, gate=gate))
            await until(lambda: engine.num_running == 1)
            second = engine.submit(Script(1, gate=gate))
            with pytest.raises(QueueFullError, match="1 requests run and 1 wait"):
                engine.submit(Script(1))
            second.cancel()
            third = engine.submit(Script(1, gate=gate))
            gate.set()
            assert await events(first) == [0]
            assert await events(third) == [0]

    run(test)


def test_a_cancelled_job_in_the_queue_never_starts() -> None:
    async def test() -> None:
        gate = threading.Event()
        waiting = Script(3)
        async with thread(max_running=1) as engine:
            first = engine.submit(Script(1, gate=gate))
            await until(lambda: engine.num_running == 1)
            job = engine.submit(waiting)
            job.cancel()
            assert engine.num_waiting == 0
            gate.set()
            await events(first)
        assert waiting.done == 0

    run(test)


def test_a_cancelled_job_stops_before_its_next_unit_and_is_closed() -> None:
    async def test() -> None:
        script = Script(1000, gate=threading.Event())
        async with thread() as engine:
            job = engine.submit(script)
            await until(lambda: engine.num_running == 1)
            job.cancel()
            assert script.gate is not None
            script.gate.set()
            await until(script.closed.is_set)
            await until(lambda: engine.num_running == 0)
            assert script.done <= 1

    run(test)


def test_a_reader_that_falls_behind_holds_up_its_own_job_alone() -> None:
    async def test() -> None:
        slow, quick = Script(10 * UNREAD_BATCHES), Script(3 * UNREAD_BATCHES)
        async with thread() as engine:
            unread = engine.submit(slow)
            assert len(await events(engine.submit(quick))) == 3 * UNREAD_BATCHES
            await until(lambda: slow.done == UNREAD_BATCHES)
            await asyncio.sleep(0.05)
            assert slow.done == UNREAD_BATCHES
            assert len(await events(unread)) == 10 * UNREAD_BATCHES  # reading lets it go on, and nothing was lost

    run(test)


def test_an_error_ends_its_own_job_alone() -> None:
    async def test() -> None:
        async with thread() as engine:
            failing, fine = engine.submit(Script(5, error_at=2)), engine.submit(Script(5))
            reader = aiter(failing)
            assert [await anext(reader), await anext(reader)] == [0, 1]
            with pytest.raises(RuntimeError, match="this unit fails"):
                await anext(reader)
            assert await events(fine) == [0, 1, 2, 3, 4]
            assert await events(engine.submit(Script(1))) == [0]

    run(test)


def test_stopping_fails_what_has_not_finished() -> None:
    async def test() -> None:
        gate = threading.Event()
        engine = EngineThread(NO_ENGINE, max_running=1, max_queued=1)
        running, waiting = Script(100, gate=gate), Script(1)
        jobs = [engine.submit(running), engine.submit(waiting)]
        await until(lambda: engine.num_running == 1)
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
        await asyncio.sleep(0.02)
        gate.set()
        await stopping
        for job in jobs:
            with pytest.raises(ShuttingDownError):
                await events(job)
        assert running.closed.is_set()
        assert waiting.done == 0
        with pytest.raises(ShuttingDownError):
            engine.submit(Script(1))

    run(test)


def test_work_is_told_how_long_it_waited() -> None:
    async def test() -> None:
        gate = threading.Event()
        waited: list[float] = []

        def work(engine: Engine, queue_seconds: float) -> Iterator[Sequence[int]]:
            waited.append(queue_seconds)
            yield [0]

        async with thread(max_running=1) as engine:
            first = engine.submit(Script(1, gate=gate))
            second = engine.submit(work)
            began = time.monotonic()
            await asyncio.sleep(0.05)
            gate.set()
            await events(first)
            await events(second)
            assert 0.05 <= waited[0] <= time.monotonic() - began + 0.05

    run(test)
