"""How long a scheduler's passes take on this machine, by what is in them.

Decode steps are run by the engine's own scheduler, so that what it does beside the model (sampling, text, events) is in
their times. What gRPC takes is not: see `limits`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from gradellm_bench.models import BenchModel
from gradellm_bench.streams import chunked, streams_of
from gradellm_bench.timeline import Stopwatch
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE, Request, RequestPhase
from gradellm_engine.core.scheduler import MAX_EXPLAINED_TOKENS
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.passes.ragged import SequenceChunk

Kind = Literal["step", "explained_step", "scores", "replay", "read"]
Progress = Callable[[str], None]
WARM_UPS = 3  # steps that are not counted: of a shape that is new, they are compiled and recorded


@dataclass(frozen=True)
class Pass:
    """One kind of pass of one size.

    Attributes:
        kind: `step`, a token of each stream without explanation; `explained_step`, the same with what explaining will
            need, and `scores`, its second half; `replay`, a chunk of each stream once more; `read`, a piece of a
            prompt.
        streams: in it.
        tokens: of each stream.
        context: tokens that each stream held before.
        seconds: of each time.
        first_seconds: of the first time, in which the shape was recorded where steps are; None where nothing was new.
    """

    kind: Kind
    streams: int
    tokens: int
    context: int
    seconds: tuple[float, ...]
    first_seconds: float | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@dataclass
class Measured:
    """A machine's passes.

    Attributes:
        machine: what they hold for.
        processor: cpu or cuda.
        kv_bytes_per_token: bytes of a token's keys and values.
        weight_bytes: that a step reads.
        bandwidth: bytes a second that memory is read at.
        context_tokens: of the model.
        passes: what was measured.
    """

    machine: dict[str, str]
    processor: Literal["cpu", "cuda"]
    kv_bytes_per_token: int
    weight_bytes: int
    bandwidth: float
    context_tokens: int
    passes: list[Pass] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What `write` wrote.

        Raises:
            ValueError: for a file that is not that.
        """
        try:
            known = json.loads(path.read_text())
            passes = [Pass(**{**its, "seconds": tuple(its["seconds"])}) for its in known.pop("passes")]
            return cls(**known, passes=passes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not what `python -m gradellm_bench.capacity measure --json FILE` writes: {error}"
            ) from None


def measure(
    subject: BenchModel,
    *,
    counts: Sequence[int],
    contexts: Sequence[int],
    pieces: Sequence[int],
    steps: int,
    progress: Progress,
) -> Iterator[Pass]:
    """Time passes of so many streams, with so many tokens before them, and pieces of prompts."""
    longest, room = max(contexts), DEFAULT_CHUNK_SIZE * (steps + 2) + WARM_UPS + 2
    engine = subject.engine(
        max_running=max(counts),
        num_tokens=max(max(counts) * (longest + room), longest + max(pieces) + 1),
    )
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    most_explained = MAX_EXPLAINED_TOKENS[subject.loaded.runner.processor]
    for context in contexts:
        for size in pieces:
            progress(f"pieces of {size} tokens after {context}")
            yield _piece(engine, subject, rng, context, size, steps)
    for context in contexts:
        for count in counts:
            for attribution in (None, AttributionSettings(), chunked(DEFAULT_CHUNK_SIZE)):
                way = "plain" if attribution is None else attribution.delivery
                if way == Delivery.CHUNKED and count * DEFAULT_CHUNK_SIZE > most_explained:
                    continue  # they do not fit a pass: smaller ones tell what one takes
                progress(f"{count} streams with {context} tokens each: {way}")
                yield from _decoding(engine, subject, rng, context, count, attribution, steps)


def _piece(engine: Engine, subject: BenchModel, rng: Random, context: int, size: int, steps: int) -> Pass:
    """Reading a piece of a prompt behind `context` tokens."""
    runner, seconds = subject.loaded.runner, []
    runner.pool.forget()
    for _ in range(1 + steps):
        slot = runner.pool.allocate(context + size, is_long=runner.is_long(context + size))
        if slot is None:
            raise RuntimeError("the pool was made with room for this")
        if context:
            runner.read([SequenceChunk.new(slot, subject.prompt(rng, context))])
        part = SequenceChunk.new(slot, subject.prompt(rng, size))
        watch = Stopwatch()
        runner.read([part])
        seconds.append(watch())
        slot.close()
    return Pass("read", 1, size, context, tuple(seconds[1:]))


def _decoding(
    engine: Engine,
    subject: BenchModel,
    rng: Random,
    context: int,
    count: int,
    attribution: AttributionSettings | None,
    steps: int,
) -> list[Pass]:
    """Steps of so many streams; with delivery chunked, their replays alone: their steps are plain ones."""
    subject.loaded.runner.pool.forget()
    is_chunked = attribution is not None and attribution.chunk_size is not None
    new_tokens = DEFAULT_CHUNK_SIZE * (steps + 1) if is_chunked else WARM_UPS + steps
    prompts = [subject.prompt(rng, context) for _ in range(count)]
    streams = streams_of(engine, prompts, new_tokens, attribution)
    for stream in streams:
        engine.scheduler.submit(stream)
    while any(stream.phase in (RequestPhase.WAITING, RequestPhase.PREFILL) for stream in streams):
        for _ in engine.scheduler.step(lambda stream: stream.phase is RequestPhase.PREFILL):
            pass
    timed: dict[Kind, list[float]] = {}
    while not all(stream.is_closed for stream in streams):
        for half, seconds in enumerate(_timed(engine, streams)):
            timed.setdefault(_kind(attribution, half), []).append(seconds)
    if is_chunked:
        first, *others = timed["replay"]
        return [Pass("replay", count, DEFAULT_CHUNK_SIZE, context, tuple(others), first)]
    return [Pass(kind, count, 1, context, tuple(seconds[WARM_UPS:]), seconds[0]) for kind, seconds in timed.items()]


def _kind(attribution: AttributionSettings | None, half: int) -> Kind:
    """What a tick's first or second pass is."""
    if attribution is None:
        return "step"
    if attribution.delivery is Delivery.CHUNKED:
        return "replay" if half else "step"
    return "scores" if half else "explained_step"


def _timed(engine: Engine, streams: Sequence[Request]) -> list[float]:
    """Seconds of each pass of a tick, with what is told taken as a server takes it."""
    seconds, watch, before = [], Stopwatch(), 0.0
    for _ in engine.scheduler.step():
        for stream in streams:
            if stream.error is not None:
                raise stream.error
            stream.take_events()
        seconds.append(watch() - before)
        before += seconds[-1]
    return seconds
