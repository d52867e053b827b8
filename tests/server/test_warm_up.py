"""Warm-up: which requests run before the server is ready, and at which batch sizes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm_engine import DEFAULT_CHUNK_SIZE, Delivery, InvalidRequestError, concrete_preset
from gradellm_engine.params import Rotary
from gradellm_server.warm_up import DefaultPresetError, warm_up

CONTEXT_TOKENS = 64


class FakeEngine:
    """An engine that records the settings of requests instead of running a model."""

    max_new_tokens = CONTEXT_TOKENS

    def __init__(self, *, uses_graphs: bool, context_tokens: int = CONTEXT_TOKENS) -> None:
        self.uses_graphs, self.context_tokens = uses_graphs, context_tokens
        self.num_tokens: set[int] = set()

    @property
    def request_builder(self) -> Any:
        return SimpleNamespace(resolver=SimpleNamespace(attribution=self._resolve))

    def _resolve(self, settings: Any, prompt: Any, *, is_completion: bool) -> None:
        assert not is_completion
        if settings.method.rotary is Rotary.UNROTATED:
            raise InvalidRequestError("attribution.rotary", "unrotated is not defined for the family gpt2: it has none")

    def prepare_structured_output(self) -> None:
        self.is_prepared = True

    def concrete_preset(self, name: str) -> str:
        return concrete_preset(name)

    def tokenize(self, prompt: str) -> Any:
        return SimpleNamespace(tokens=[0] * (len(prompt) + 1))

    def generation_request(self, prompt: Any, sampling: Any, settings: Any) -> str:
        self.num_tokens.add(sampling.max_new_tokens)
        if settings is None:
            return "plain"
        return "chunked" if settings.delivery is Delivery.CHUNKED else "per token"


class FakeJob:
    """The first job that is iterated runs all that are submitted by then, as a batch."""

    def __init__(self, thread: FakeThread) -> None:
        self._thread = thread

    async def __aiter__(self) -> AsyncIterator[object]:
        await asyncio.sleep(0)
        if self._thread.submitted:
            self._thread.batches.append(tuple(self._thread.submitted))
            self._thread.submitted.clear()
        if self._thread.error is not None:
            raise self._thread.error
        return
        yield

    def cancel(self) -> None:
        self._thread.num_cancelled += 1


class FakeThread:
    """An engine thread that records which requests run together."""

    def __init__(self, engine: FakeEngine, *, max_running: int, max_queued: int = 64) -> None:
        self.engine, self.max_running, self.max_queued = engine, max_running, max_queued
        self.submitted: list[str] = []
        self.batches: list[tuple[str, ...]] = []
        self.num_cancelled = 0
        self.error: Exception | None = None

    def submit(self, read: Callable[[Any], Any], convert: object) -> FakeJob:
        self.submitted.append(read(self.engine))
        return FakeJob(self)


def batches(engine: FakeEngine, **limits: int) -> list[tuple[str, ...]]:
    thread: Any = FakeThread(engine, **limits)
    asyncio.run(warm_up(engine, thread, "recommended"))  # type: ignore[arg-type]
    assert thread.num_cancelled == sum(map(len, thread.batches))  # every job ends
    return thread.batches  # type: ignore[no-any-return]


ALONE = [("per token",), ("chunked",), ("plain",)]


def test_each_mode_runs_alone_and_all_together() -> None:
    assert batches(FakeEngine(uses_graphs=False), max_running=16) == [*ALONE, ("per token", "chunked", "plain")]


def test_the_limits_of_the_queue_are_kept() -> None:
    """Else the server's own warm-up would be rejected."""
    assert batches(FakeEngine(uses_graphs=False), max_running=1, max_queued=0) == [("per token",)] * 2
    assert batches(FakeEngine(uses_graphs=False), max_running=2, max_queued=0) == [*ALONE[:2], ("per token", "chunked")]


@pytest.mark.parametrize(("max_running", "sizes"), [(1, []), (2, [2]), (8, [2, 4, 8]), (11, [2, 4, 8, 11])])
def test_with_graphs_every_mode_runs_at_every_batch_size(max_running: int, sizes: list[int]) -> None:
    together = batches(FakeEngine(uses_graphs=True), max_running=max_running)[4:]
    assert together == [(mode,) * size for size in sizes for (mode,) in ALONE]


@pytest.mark.parametrize(
    ("uses_graphs", "context_tokens", "num_tokens"),
    [(False, 64, 4), (True, 64, DEFAULT_CHUNK_SIZE), (True, 5, 3), (False, 3, 1)],
)
def test_the_completion_fits_the_context(uses_graphs: bool, context_tokens: int, num_tokens: int) -> None:
    """After a prompt of two tokens; with graphs it is as long as a chunk, so that a whole one is captured."""
    engine = FakeEngine(uses_graphs=uses_graphs, context_tokens=context_tokens)
    batches(engine, max_running=1)
    assert engine.num_tokens == {num_tokens}


def test_a_model_that_fails_ends_the_warm_up_and_its_job() -> None:
    engine = FakeEngine(uses_graphs=False)
    thread: Any = FakeThread(engine, max_running=2)
    thread.error = RuntimeError("no kernel image is available")
    with pytest.raises(RuntimeError, match="no kernel image"):
        asyncio.run(warm_up(engine, thread, "recommended"))  # type: ignore[arg-type]
    assert (thread.batches, thread.num_cancelled) == ([("per token",)], 1)


def test_a_default_that_the_model_lacks_names_the_flag() -> None:
    engine = FakeEngine(uses_graphs=False)
    thread = FakeThread(engine, max_running=1)
    with pytest.raises(
        DefaultPresetError, match=r"--default-attribution grad_eclip: unrotated is not defined"
    ) as error:
        asyncio.run(warm_up(engine, thread, "grad_eclip"))  # type: ignore[arg-type]
    assert "choose another preset, such as recommended" in str(error.value)
    assert thread.batches == []
