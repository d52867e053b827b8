"""Times of the scheduler's passes on this machine, by kind and size.

Decode steps run on the engine's scheduler, so that sampling, detokenization and events are included. gRPC is not
included; `limits` accounts for it.
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
from gradellm_bench.served.streams import chunked, new_requests
from gradellm_bench.timeline import Stopwatch
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE, Request, RequestPhase
from gradellm_engine.core.scheduler import MAX_EXPLAINED_TOKENS
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.passes.base import SequenceChunk

Kind = Literal["step", "explained_step", "scores", "replay", "read"]
Progress = Callable[[str], None]
WARM_UPS = 3  # steps that are not counted: those of a new shape are compiled and captured


@dataclass(frozen=True)
class PassMeasurement:
    """Times of a pass of one kind and size.

    Attributes:
        kind: `step`, a plain decode step; `explained_step`, a decode step with an autograd graph, and `scores`, its
            backward pass and attribution; `replay`, a teacher-forced replay of a chunk; `read`, a prefill chunk.
        streams: number of streams.
        tokens: tokens of each stream.
        context: tokens that each stream held before.
        seconds: seconds of each repetition.
        first_seconds: seconds of the first repetition, with the capture of a CUDA graph; None if nothing was captured.
    """

    kind: Kind
    streams: int
    tokens: int
    context: int
    seconds: tuple[float, ...]
    first_seconds: float | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


@dataclass
class Measurements:
    """Pass times of a machine.

    Attributes:
        machine: model, dtype, device, versions.
        processor: cpu or cuda.
        kv_bytes_per_token: bytes of a token's keys and values.
        weight_bytes: bytes of weights that a step reads.
        bandwidth: memory bandwidth in bytes per second.
        context_tokens: the model's context.
        passes: the times.
    """

    machine: dict[str, str]
    processor: Literal["cpu", "cuda"]
    kv_bytes_per_token: int
    weight_bytes: int
    bandwidth: float
    context_tokens: int
    passes: list[PassMeasurement] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """Read a file that `write` wrote.

        Raises:
            ValueError: if the file has another format.
        """
        try:
            fields = json.loads(path.read_text())
            passes = [PassMeasurement(**{**row, "seconds": tuple(row["seconds"])}) for row in fields.pop("passes")]
            return cls(**fields, passes=passes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not what `python -m gradellm_bench.capacity measure --json FILE` writes: {error}"
            ) from None


def measure(
    bench_model: BenchModel,
    *,
    counts: Sequence[int],
    contexts: Sequence[int],
    chunk_sizes: Sequence[int],
    steps: int,
    progress: Progress,
) -> Iterator[PassMeasurement]:
    """Time decode steps and replays by number of streams and context, and prefill chunks by size and context."""
    longest, room = max(contexts), DEFAULT_CHUNK_SIZE * (steps + 2) + WARM_UPS + 2
    engine = bench_model.engine(
        max_running=max(counts),
        num_tokens=max(max(counts) * (longest + room), longest + max(chunk_sizes) + 1),
    )
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    most_explained = MAX_EXPLAINED_TOKENS[bench_model.loaded.runner.processor]
    for context in contexts:
        for size in chunk_sizes:
            progress(f"prefill chunks of {size} tokens after {context}")
            yield _prefill_chunk(engine, bench_model, rng, context, size, steps)
    for context in contexts:
        for count in counts:
            for attribution in (None, AttributionSettings(), chunked(DEFAULT_CHUNK_SIZE)):
                delivery = "plain" if attribution is None else attribution.delivery
                if delivery == Delivery.CHUNKED and count * DEFAULT_CHUNK_SIZE > most_explained:
                    continue  # such a replay does not fit a pass
                progress(f"{count} streams with {context} tokens each: {delivery}")
                yield from _decoding(engine, bench_model, rng, context, count, attribution, steps)


def _prefill_chunk(
    engine: Engine, bench_model: BenchModel, rng: Random, context: int, size: int, steps: int
) -> PassMeasurement:
    """Time a prefill chunk of `size` tokens after `context` tokens."""
    runner, seconds = bench_model.loaded.runner, []
    runner.pool.evict_all()
    for _ in range(1 + steps):
        slot = runner.pool.allocate(context + size, is_long=runner.is_long(context + size))
        if slot is None:
            raise RuntimeError("the KV cache has no free slot for a prefill chunk")
        if context:
            runner.prefill([SequenceChunk.new(slot, bench_model.prompt(rng, context))])
        chunk = SequenceChunk.new(slot, bench_model.prompt(rng, size))
        watch = Stopwatch()
        runner.prefill([chunk])
        seconds.append(watch())
        slot.close()
    return PassMeasurement("read", 1, size, context, tuple(seconds[1:]))


def _decoding(
    engine: Engine,
    bench_model: BenchModel,
    rng: Random,
    context: int,
    count: int,
    attribution: AttributionSettings | None,
    steps: int,
) -> list[PassMeasurement]:
    """Time decode steps of `count` streams; with chunked delivery only their replays, since their steps are plain."""
    bench_model.loaded.runner.pool.evict_all()
    is_chunked = attribution is not None and attribution.chunk_size is not None
    # The pass that ends a prompt may give the first token already.
    new_tokens = DEFAULT_CHUNK_SIZE * (steps + 1) if is_chunked else 1 + WARM_UPS + steps
    prompts = [bench_model.prompt(rng, context) for _ in range(count)]
    requests = new_requests(engine, prompts, new_tokens, attribution)
    for request in requests:
        engine.scheduler.submit(request)
    while any(request.phase in (RequestPhase.WAITING, RequestPhase.PREFILL) for request in requests):
        for _ in engine.scheduler.step(lambda request: request.phase is RequestPhase.PREFILL):
            pass
    timed: dict[Kind, list[float]] = {}
    while not all(request.is_closed for request in requests):
        for half, seconds in enumerate(_timed(engine, requests)):
            timed.setdefault(_kind(attribution, half), []).append(seconds)
    if is_chunked:
        first, *repetitions = timed["replay"]
        return [PassMeasurement("replay", count, DEFAULT_CHUNK_SIZE, context, tuple(repetitions), first)]
    return [
        PassMeasurement(kind, count, 1, context, tuple(seconds[WARM_UPS:][:steps]), seconds[0])
        for kind, seconds in timed.items()
    ]


def _kind(attribution: AttributionSettings | None, half: int) -> Kind:
    """The kind of a scheduler step's first (0) or second (1) pass."""
    if attribution is None:
        return "step"
    if attribution.delivery is Delivery.CHUNKED:
        return "replay" if half else "step"
    return "scores" if half else "explained_step"


def _timed(engine: Engine, requests: Sequence[Request]) -> list[float]:
    """Seconds of each pass of a scheduler step; events are taken after each pass, as a server does."""
    seconds, watch, before = [], Stopwatch(), 0.0
    for _ in engine.scheduler.step():
        for request in requests:
            if request.error is not None:
                raise request.error
            request.take_events()
        seconds.append(watch() - before)
        before += seconds[-1]
    return seconds
