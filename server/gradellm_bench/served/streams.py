"""Requests to this engine, run to their end while what they tell is noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradellm_bench.timeline import Stopwatch, Timeline
from gradellm_engine.core.outputs import Attribution, Finished, Step
from gradellm_engine.core.request import Request, RequestPhase
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Delivery, Sampling
from gradellm_engine.tokenization.prompts import PromptInput


def chunked(size: int) -> AttributionSettings:
    """Delivery chunked, with chunks of one size."""
    return AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=size)


STREAM_MODES: dict[str, AttributionSettings | None] = {
    "plain": None,
    "per_token": AttributionSettings(),
    "chunked(16)": chunked(16),
    "chunked(32)": chunked(32),
}


def sampling(count: int) -> Sampling:
    """Greedy, as many tokens."""
    return Sampling(max_new_tokens=count, temperature=0.0)


def note(timeline: Timeline, stream: Request, now: float) -> None:
    """Take what a stream has to tell.

    Raises:
        Exception: what the stream ended with.
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
    """A request for each prompt."""
    return [
        engine.generation_request(PromptInput(prompt_ids=tuple(prompt)), sampling(new_tokens), attribution)
        for prompt in prompts
    ]


def run_streams(
    engine: Engine,
    streams: Sequence[Request],
    between: Callable[[Stopwatch, Sequence[Timeline]], None] = lambda watch, timelines: None,
    *,
    submitted: int | None = None,
    decode_together: bool = False,
) -> list[Timeline]:
    """Run streams to their end.

    Args:
        engine: runs them.
        streams: requests.
        between: called after every tick.
        submitted: so many come in at once, the others when `between` submits them; all by default.
        decode_together: whether none decodes before all prompts are read.
    """
    timelines = [Timeline() for _ in streams]
    for stream in streams[:submitted]:
        engine.scheduler.submit(stream)
    watch = Stopwatch()
    while not all(stream.is_closed for stream in streams):
        is_reading = decode_together and any(
            stream.phase in (RequestPhase.WAITING, RequestPhase.PREFILL) for stream in streams
        )
        for _ in engine.scheduler.step(_is_reading if is_reading else _is_any):
            now = watch()
            for timeline, stream in zip(timelines, streams, strict=True):
                note(timeline, stream, now)
        between(watch, timelines)
    for timeline, stream in zip(timelines, streams, strict=True):
        note(timeline, stream, watch())
    return timelines


def run_in_turns(engine: Engine, streams: Sequence[Request], *, tokens_a_turn: int) -> list[Timeline]:
    """Run streams to their end, each for some tokens at a time, each by a watch of its own.

    What slows the machine for a moment slows them alike. The pool must not reuse prefixes, or those of one prompt would
    help each other.
    """
    timelines, watches = [Timeline() for _ in streams], [Stopwatch() for _ in streams]
    for stream, watch in zip(streams, watches, strict=True):
        engine.scheduler.submit(stream)
        watch.stop()
    while not all(stream.is_closed for stream in streams):
        for stream, timeline, watch in zip(streams, timelines, watches, strict=True):
            watch.go_on()
            _take_turn(engine, stream, timeline, watch, tokens_a_turn)
            watch.stop()
    return timelines


def _take_turn(engine: Engine, stream: Request, timeline: Timeline, watch: Stopwatch, num_tokens: int) -> None:
    enough = len(timeline.tokens) + num_tokens
    while not stream.is_closed and len(timeline.tokens) < enough:
        for _ in engine.scheduler.step(lambda other: other is stream):
            note(timeline, stream, watch())
    note(timeline, stream, watch())


def _is_reading(stream: Request) -> bool:
    return stream.phase is RequestPhase.PREFILL


def _is_any(stream: Request) -> bool:
    return True
