"""Warm-up: requests before the server is ready, so that compilation and graph capture do not delay a caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gradellm_engine import (
    DEFAULT_CHUNK_SIZE,
    AttributionSettings,
    Delivery,
    Engine,
    Event,
    GradEllm,
    InvalidRequestError,
    PromptInput,
    Request,
    Sampling,
)
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.job import Job

PROMPT = "A"
NUM_TOKENS = 4


class DefaultPresetError(Exception):
    """The preset of `--default-attribution` is not defined for the model."""


async def warm_up(engine: Engine, thread: EngineThread, preset: str) -> None:
    """Generate a few tokens through the scheduler: attributed per token, attributed in chunks, and not at all.

    They are attributed by a preset, the server's default. The tokenizer is read for structured output first.

    With CUDA graphs, each batch size is compiled and captured by itself, which takes about a second and blocks the
    engine. There the warm-up runs batches of 1, 2, 4, ... requests of each mode, up to `max_running`.

    Raises:
        DefaultPresetError: if the preset is not defined for the model.
        EngineError: if the model fails.
    """
    engine.prepare_structured_output()
    num_wanted = DEFAULT_CHUNK_SIZE if engine.uses_graphs else NUM_TOKENS
    # A model with a very small context may have room for one token only.
    num_tokens = min(num_wanted, engine.context_tokens - len(engine.tokenize(PROMPT).tokens), engine.max_new_tokens)

    method = GradEllm.preset(engine.concrete_preset(preset))
    _check(engine, preset, AttributionSettings(method))
    modes = (AttributionSettings(method), AttributionSettings(method, delivery=Delivery.CHUNKED), None)

    def request(settings: AttributionSettings | None, engine: Engine) -> Request:
        return engine.generation_request(PromptInput(prompt=PROMPT), Sampling(max_new_tokens=num_tokens), settings)

    async def run(settings: AttributionSettings | None) -> None:
        job: Job[Event] = thread.submit(lambda engine: request(settings, engine), _no_responses)
        try:
            async for _ in job:
                pass
        finally:
            job.cancel()

    for settings in modes[: max(1, thread.max_running + thread.max_queued)]:
        await run(settings)
    await asyncio.gather(*(run(settings) for settings in modes[: thread.max_running]))
    if engine.uses_graphs:
        for batch_size in _batch_sizes(thread.max_running):
            for settings in modes:
                await asyncio.gather(*(run(settings) for _ in range(batch_size)))


def _check(engine: Engine, preset: str, settings: AttributionSettings) -> None:
    """Refuse a default that is not defined for the model.

    Raises:
        DefaultPresetError: naming the flag.
    """
    try:
        engine.request_builder.resolver.attribution(settings, engine.tokenize(PROMPT), is_completion=False)
    except InvalidRequestError as error:
        raise DefaultPresetError(
            f"--default-attribution {preset}: {error.description}; choose another preset, such as recommended"
        ) from error


def _batch_sizes(largest: int) -> list[int]:
    """2, 4, 8, ... and the largest."""
    return [size for size in (2**power for power in range(1, 12)) if size < largest] + [largest] * (largest > 1)


def _no_responses(event: Event) -> Sequence[Event]:
    return []
