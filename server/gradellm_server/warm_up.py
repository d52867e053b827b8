"""The first requests of a server, before anybody else's: what is compiled or recorded at first use is so then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gradellm_engine import AttributionSettings, Delivery, Engine, Event, PromptInput, Request, Sampling
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE
from gradellm_server.engine_thread import EngineThread, Job

PROMPT = "A"
NUM_TOKENS = 4
KINDS = (AttributionSettings(), AttributionSettings(delivery=Delivery.CHUNKED), None)


async def warm_up(engine: Engine, thread: EngineThread) -> None:
    """Generate a few tokens, explained at once, in chunks, and not at all, through the scheduler.

    On a GPU steps are compiled, and recorded for each number of streams by itself: a second each, in which nobody
    would get a token. There it is done for 1, 2, 4, ... streams of each kind, up to as many as may run.

    Raises:
        EngineError: where the model fails already here.
    """
    # A prompt that fills the whole context of a very small one leaves room for no more than a token.
    is_recorded = engine.uses_graphs
    wanted = DEFAULT_CHUNK_SIZE if is_recorded else NUM_TOKENS
    num_tokens = min(wanted, engine.context_tokens - len(engine.tokenize(PROMPT).tokens), engine.max_new_tokens)

    def stream(settings: AttributionSettings | None, engine: Engine) -> Request:
        return engine.generation_request(PromptInput(prompt=PROMPT), Sampling(max_new_tokens=num_tokens), settings)

    async def run(settings: AttributionSettings | None) -> None:
        job: Job[Event] = thread.submit(lambda engine: stream(settings, engine), _tells_nothing)
        try:
            async for _ in job:
                pass
        finally:
            job.cancel()

    for settings in KINDS[: max(1, thread.max_running + thread.max_queued)]:
        await run(settings)
    await asyncio.gather(*(run(settings) for settings in KINDS[: thread.max_running]))
    if is_recorded:
        for count in _counts(thread.max_running):
            for settings in KINDS:
                await asyncio.gather(*(run(settings) for _ in range(count)))


def _counts(most: int) -> list[int]:
    """2, 4, ... and the most, of streams that run together."""
    return [count for count in (2**power for power in range(1, 12)) if count < most] + [most] * (most > 1)


def _tells_nothing(event: Event) -> Sequence[Event]:
    """Nobody reads it."""
    return []
