"""The first requests of a server, before anybody else's: what is compiled or recorded at first use is so then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gradellm_engine import AttributionSettings, Delivery, Engine, Event, PromptInput, Sampling, Stream
from gradellm_server.engine_thread import EngineThread, Job

PROMPT = "A"
NUM_TOKENS = 4
KINDS = (AttributionSettings(), AttributionSettings(delivery=Delivery.CHUNKED), None)


async def warm_up(engine: Engine, thread: EngineThread) -> None:
    """Generate a few tokens, explained at once, in chunks, and not at all, through the scheduler.

    Raises:
        EngineError: where the model fails already here.
    """
    # A prompt that fills the whole context of a very small one leaves room for no more than a token.
    num_tokens = min(NUM_TOKENS, engine.context_tokens - len(engine.tokenize(PROMPT).tokens), engine.max_new_tokens)

    def stream(settings: AttributionSettings | None, engine: Engine) -> Stream:
        return engine.stream(PromptInput(prompt=PROMPT), Sampling(max_new_tokens=num_tokens), settings)

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


def _tells_nothing(event: Event) -> Sequence[Event]:
    """Nobody reads it."""
    return []
