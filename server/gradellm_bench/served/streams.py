"""Runs requests on this engine's scheduler and records their timelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradellm_bench.timeline import Stopwatch, Timeline
from gradellm_engine.core.outputs import Attribution, Finished, Step
from gradellm_engine.core.request import Request, RequestPhase
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt_input import PromptInput


def chunked(size: int) -> AttributionSettings:
    """Attribution delivered in chunks of `size` tokens."""
    return AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=size)


STREAM_MODES: dict[str, AttributionSettings | None] = {
    "plain": None,
    "per_token": AttributionSettings(),
    "chunked(16)": chunked(16),
    "chunked(32)": chunked(32),
}


def greedy(count: int) -> Sampling:
    """Greedy decoding of `count` tokens."""
    return Sampling(max_new_tokens=count, temperature=0.0)


def record_events(timeline: Timeline, stream: Request, now: float) -> None:
    """Record a stream's new events at time `now`.

    Raises:
        Exception: the error that the stream ended with.
    """
    if stream.error is not None:
        raise stream.error
    if timeline.read is None and stream.phase in (RequestPhase.DECODE, RequestPhase.EXPLAIN):
        timeline.read = now
    for event in stream.take_events():
        if isinstance(event, Step):
            timeline.ids.append(event.id)
            timeline.tokens.append(now)
        elif isinstance(event, Attribution):
            timeline.vectors.append(now)
        elif isinstance(event, Finished):
            timeline.finished = event


def new_requests(
    engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int, attribution: AttributionSettings | None
) -> list[Request]:
    """A request for each prompt, not yet submitted."""
    return [
        engine.generation_request(PromptInput(prompt_ids=tuple(prompt)), greedy(new_tokens), attribution)
        for prompt in prompts
    ]


def run_streams(
    engine: Engine,
    streams: Sequence[Request],
    after_step: Callable[[Stopwatch, Sequence[Timeline]], None] = lambda watch, timelines: None,
    *,
    submitted: int | None = None,
    decode_together: bool = False,
) -> list[Timeline]:
    """Run streams to their end.

    Args:
        engine: whose scheduler runs them.
        streams: requests.
        after_step: called after every scheduler step.
        submitted: how many are submitted at the start; `after_step` submits the others. All by default.
        decode_together: whether no stream gets a second token before the prefill of all is done.
    """
    timelines = [Timeline() for _ in streams]
    for stream in streams[:submitted]:
        engine.scheduler.submit(stream)
    watch = Stopwatch()
    while not all(stream.is_closed for stream in streams):
        is_prefill = decode_together and any(
            stream.phase in (RequestPhase.WAITING, RequestPhase.PREFILL) for stream in streams
        )
        for _ in engine.scheduler.step(_in_prefill if is_prefill else _is_any):
            now = watch()
            for timeline, stream in zip(timelines, streams, strict=True):
                record_events(timeline, stream, now)
        after_step(watch, timelines)
    for timeline, stream in zip(timelines, streams, strict=True):
        record_events(timeline, stream, watch())
    return timelines


def run_in_turns(engine: Engine, streams: Sequence[Request], *, tokens_per_turn: int) -> list[Timeline]:
    """Run streams to their end in turns of some tokens, each on its own stopwatch.

    Other load on the machine slows all of them alike. The KV cache must not reuse prefixes, or streams of one prompt
    would share them.
    """
    timelines, watches = [Timeline() for _ in streams], [Stopwatch() for _ in streams]
    for stream, watch in zip(streams, watches, strict=True):
        engine.scheduler.submit(stream)
        watch.stop()
    while not all(stream.is_closed for stream in streams):
        for stream, timeline, watch in zip(streams, timelines, watches, strict=True):
            watch.resume()
            _take_turn(engine, stream, timeline, watch, tokens_per_turn)
            watch.stop()
    return timelines


def _take_turn(engine: Engine, stream: Request, timeline: Timeline, watch: Stopwatch, num_tokens: int) -> None:
    enough = len(timeline.tokens) + num_tokens
    while not stream.is_closed and len(timeline.tokens) < enough:
        for _ in engine.scheduler.step(lambda other: other is stream):
            record_events(timeline, stream, watch())
    record_events(timeline, stream, watch())


def _in_prefill(stream: Request) -> bool:
    return stream.phase is RequestPhase.PREFILL


def _is_any(stream: Request) -> bool:
    return True
