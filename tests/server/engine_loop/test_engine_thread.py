"""Queue, slots and readers of the engine thread, with a real engine whose passes wait for the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from torch import Tensor

from gradellm_engine import Engine, Event, Finished, PromptInput, Request, Sampling, Step
from gradellm_server.engine_loop import engine_thread as module
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.errors import QueueFullError, ShuttingDownError
from gradellm_server.engine_loop.job import Job
from gradellm_server.engine_loop.response_queue import MAX_UNREAD_BATCHES

Answers = Job[Event]


class Gate:
    """Holds back passes of the model while it is closed, and counts them; one of them may fail."""

    def __init__(self, engine: Engine) -> None:
        self._step = engine.model.runner.step
        self.open = threading.Event()
        self.open.set()
        self.num_passes = 0
        self.error: Exception | None = None

    def step(self, *arguments: Any) -> Tensor:
        self.open.wait(10)
        self.num_passes += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._step(*arguments)


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(engine)
    monkeypatch.setattr(engine.model.runner, "step", gate.step)
    yield gate
    gate.open.set()


@pytest.fixture
def thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(
        max_running: int = 2, max_queued: int = 1, max_queued_tokens: int = 10_000
    ) -> AsyncIterator[EngineThread]:
        monkeypatch.setattr(engine.scheduler, "max_running", max_running)
        thread = EngineThread(engine, max_queued=max_queued, max_queued_tokens=max_queued_tokens)
        try:
            yield thread
        finally:
            await asyncio.to_thread(thread.stop)
            assert not engine.scheduler.running
            assert not engine.scheduler.waiting
            assert engine.model.runner.pool.num_free_tokens == engine.kv_tokens

    return start


def request(num_tokens: int, prompt: str = "Once") -> Callable[[Engine], Request]:
    return lambda engine: engine.generation_request(PromptInput(prompt=prompt), Sampling(max_new_tokens=num_tokens))


def as_it_is(event: Event) -> list[Event]:
    return [event]


def submit(thread: EngineThread, num_tokens: int, prompt: str = "Once") -> Answers:
    return thread.submit(request(num_tokens, prompt), as_it_is)


async def steps(job: Answers) -> list[int]:
    return [event.index async for event in job if isinstance(event, Step)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (what is waited for happens on another thread)
        await asyncio.sleep(0.002)


def test_events_come_in_order(thread: Callable[..., Any]) -> None:
    async def test() -> None:
        async with thread() as engine_thread:
            assert await steps(submit(engine_thread, 5)) == [0, 1, 2, 3, 4]
            await until(lambda: engine_thread.num_running == 0)

    run(test)


def test_running_requests_share_their_passes(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=3) as engine_thread:
            gate.open.clear()
            jobs = [submit(engine_thread, 20, prompt) for prompt in ("a", "b", "c")]
            await until(lambda: engine_thread.num_running == 3)
            gate.open.set()
            assert await asyncio.gather(*map(steps, jobs)) == [list(range(20))] * 3
            assert gate.num_passes <= 22  # the first pass may have had one of them alone

    run(test)


def test_a_full_queue_rejects_at_once_until_a_slot_is_free(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1, max_queued=1) as engine_thread:
            gate.open.clear()
            first = submit(engine_thread, 1)
            await until(lambda: engine_thread.num_running == 1)
            second = submit(engine_thread, 1)
            with pytest.raises(QueueFullError, match=r"1 requests running, 1 queued \(limits 1 and 1\)"):
                submit(engine_thread, 1)
            second.cancel()
            third = submit(engine_thread, 1)
            gate.open.set()
            assert await steps(first) == [0]
            assert await steps(third) == [0]

    run(test)


def test_queued_tokens_are_limited(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1, max_queued=5, max_queued_tokens=60) as engine_thread:
            gate.open.clear()
            first = submit(engine_thread, 1)
            await until(lambda: engine_thread.num_running == 1)
            jobs = [submit(engine_thread, 100), submit(engine_thread, 10)]  # a single request may exceed the limit
            with pytest.raises(ValueError, match="prompt"):  # requests are read in order: both are read by now
                await steps(submit(engine_thread, 1, prompt=""))
            gate.open.set()
            assert await steps(first) == [0]
            assert len(await steps(jobs[0])) == 100
            with pytest.raises(QueueFullError, match="1 queued requests have 105 tokens"):
                await steps(jobs[1])

    run(test)


def test_an_invalid_request_fails_at_once_despite_the_queue(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1, max_queued=2) as engine_thread:
            gate.open.clear()
            running, waiting = submit(engine_thread, 1), submit(engine_thread, 1)
            await until(lambda: engine_thread.num_running == 1)
            bad = submit(engine_thread, 1, prompt="")
            gate.open.set()
            with pytest.raises(ValueError, match="prompt"):
                await steps(bad)
            assert await steps(running) == await steps(waiting) == [0]

    run(test)


def test_a_cancelled_request_in_the_queue_never_starts(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1) as engine_thread:
            gate.open.clear()
            first = submit(engine_thread, 1)
            await until(lambda: engine_thread.num_running == 1)
            submit(engine_thread, 30).cancel()
            assert engine_thread.num_waiting == 0
            gate.open.set()
            await steps(first)
        assert gate.num_passes == 1

    run(test)


def test_a_cancelled_stream_stops_before_its_next_pass(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread() as engine_thread:
            gate.open.clear()
            job = submit(engine_thread, 200)
            await until(lambda: engine_thread.num_running == 1)
            job.cancel()
            gate.open.set()
            await until(lambda: engine_thread.num_running == 0)
            assert gate.num_passes <= 1

    run(test)


def test_a_slow_consumer_delays_its_own_stream_alone(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread() as engine_thread:
            unread = submit(engine_thread, 3 * MAX_UNREAD_BATCHES)
            await until(lambda: gate.num_passes >= MAX_UNREAD_BATCHES - 1)
            await asyncio.sleep(0.05)
            assert gate.num_passes <= MAX_UNREAD_BATCHES
            assert len(await steps(submit(engine_thread, MAX_UNREAD_BATCHES))) == MAX_UNREAD_BATCHES
            assert (
                len(await steps(unread)) == 3 * MAX_UNREAD_BATCHES
            )  # it continues once it is read, and nothing is lost

    run(test)


def test_an_error_in_a_pass_ends_the_requests_of_that_pass_alone(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread() as engine_thread:
            gate.error = RuntimeError("this pass fails")
            with pytest.raises(RuntimeError, match="this pass fails"):
                await steps(submit(engine_thread, 5))
            assert await steps(submit(engine_thread, 2)) == [0, 1]

    run(test)


def test_stopping_fails_unfinished_requests(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1, max_queued=1) as engine_thread:
            gate.open.clear()
            jobs = [submit(engine_thread, 100), submit(engine_thread, 1)]
            await until(lambda: engine_thread.num_running == 1)
            stopping = asyncio.create_task(asyncio.to_thread(engine_thread.stop))
            await asyncio.sleep(0.02)
            gate.open.set()
            await stopping
            for job in jobs:
                with pytest.raises(ShuttingDownError):
                    await steps(job)
            with pytest.raises(ShuttingDownError):
                submit(engine_thread, 1)

    run(test)


def test_a_stream_reports_its_time_in_the_queue(thread: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        async with thread(max_running=1) as engine_thread:
            gate.open.clear()
            first = submit(engine_thread, 1)
            await until(lambda: engine_thread.num_running == 1)
            second = submit(engine_thread, 1)
            await asyncio.sleep(0.05)
            gate.open.set()
            await steps(first)
            (finished,) = [event async for event in second if isinstance(event, Finished)]
            assert 0.05 <= finished.queue_seconds <= 5  # whether it is read before or after the first request's pass

    run(test)


def test_memory_is_committed_and_given_back_while_idle(
    thread: Callable[..., Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def commit() -> bool:
        calls.append("commit")
        return calls.count("commit") < 3

    monkeypatch.setattr(module, "COMMIT_MEMORY_SECONDS", 0.02)
    monkeypatch.setattr(module, "RETURN_MEMORY_SECONDS", 0.1)
    monkeypatch.setattr(module, "IDLE_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(engine, "commit_memory", commit)
    monkeypatch.setattr(engine, "return_unused_memory", lambda: calls.append("return"))

    async def test() -> None:
        async with thread() as engine_thread:
            await until(lambda: "return" in calls)
            await asyncio.sleep(0.1)  # no more of either
            assert calls == ["commit"] * 3 + ["return"]
            assert await steps(submit(engine_thread, 1)) == [0]
            await until(lambda: calls.count("return") == 2)
        assert calls == ["commit"] * 3 + ["return", "commit", "return"]

    run(test)
