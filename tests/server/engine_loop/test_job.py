"""A job: cancellation by its caller, by a slow reader and by the end of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gradellm_server.engine_loop import job as job_module
from gradellm_server.engine_loop.errors import SlowConsumerError
from gradellm_server.engine_loop.job import Job


class Runner:
    """An engine thread that records what a job asks of it."""

    def __init__(self, reader_timeout_seconds: float = 60.0) -> None:
        self.reader_timeout_seconds = reader_timeout_seconds
        self.cancelled: list[Job[Any]] = []

    def cancel(self, job: Job[Any]) -> None:
        self.cancelled.append(job)

    def wake(self) -> None:
        pass


def new_job(runner: Runner) -> Job[int]:
    return Job(lambda engine: 0, lambda event: [], runner)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(limited())


def test_a_job_is_iterated_for_its_responses() -> None:
    async def test() -> None:
        runner = Runner()
        job = new_job(runner)
        job.responses.put([1, 2])
        job.responses.end()
        assert [response async for response in job] == [1, 2]
        assert runner.cancelled == []
        job.cancel()
        assert runner.cancelled == [job]

    run(test)


def test_an_unread_job_is_cancelled_and_its_status_sent_before_its_handler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is blocked in a write, as under HTTP/2 flow control: only `on_slow_reader` can send the status."""
    monkeypatch.setattr(job_module, "ABORT_SECONDS", 0.05)

    async def test() -> None:
        runner = Runner(reader_timeout_seconds=0.05)
        job = new_job(runner)
        order: list[str] = []
        job.on_slow_reader = lambda error: order.append(str(error))

        async def handler() -> None:
            try:
                async for _ in job:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                order.append("handler cancelled")
                raise

        job.responses.put([1])
        call = asyncio.create_task(handler())
        await asyncio.sleep(0)
        job.responses.put([2])
        with pytest.raises(asyncio.CancelledError):
            await call
        assert order == [str(SlowConsumerError(0.05)), "handler cancelled"]
        assert runner.cancelled == [job]

    run(test)


def test_responses_after_the_event_loop_has_ended_cancel_the_job() -> None:
    runner = Runner()
    jobs: list[Job[int]] = []

    async def test() -> None:
        jobs.append(new_job(runner))

    run(test)
    jobs[0].responses.put([1])
    assert runner.cancelled == jobs
