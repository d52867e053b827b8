"""Who runs when: many streams, one model, a pass at a time.

A tick does, in this order:

    1. admit     waiting streams, in the order of their coming, while there are running places and key-value memory
    2. decode    one token of every stream that can go on, all in one pass; those with delivery per_token are explained
    3. explain   chunks that are due (delivery chunked, given completions), up to a number of tokens
    4. analyse   one stream's completion after the fact, a pass or two, taking turns
    5. prefill   pieces of prompts, taking turns
    6. evaluate  a batch of one evaluation's changed texts, taking turns

Pieces of prompts take together about as long as the pass before them took: a long prompt that comes in makes running
streams wait about twice as long for a token, whatever its length, and where nobody waits it is read in large pieces. On
a GPU, a pass over a piece takes longer than a step, however small the piece is: there it has some hundred tokens. A
stream whose chunk is due does not decode before it is explained, so that its scores are never later than was promised.

An evaluation runs at low priority: while other requests have work, it gets one batch every STEPS_PER_EVALUATION_BATCH
steps, which delays fewer than one token in a hundred, and such a batch takes no longer than EVALUATION_BATCH_STEPS
decode steps. With no other work, its batches take about IDLE_EVALUATION_SECONDS, so that a new request waits no longer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, islice

from torch import Tensor

from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE, Request, RequestPhase, TimingBucket
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.errors import EngineError, OutOfMemoryError
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk, Target
from gradellm_engine.utils.memory import free_caches, is_out_of_memory

# By device. Of a prompt in one pass: long enough for speed, short enough to stop in time.
MAX_PREFILL_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# Where others wait for a token. On a GPU a pass takes as long for so many as for one: by smaller pieces a prompt would
# be read many times slower, and nobody would wait less.
MIN_PREFILL_CHUNK_TOKENS = {"cpu": 16, "cuda": 512}
# In one pass of chunks: beyond it a pass takes longer and gains nothing.
MAX_EXPLAINED_TOKENS = {"cpu": 64, "cuda": 256}
PASSES_BEFORE_GROWTH = 256  # that fit, before twice as many streams are tried after memory had run out
STEPS_PER_EVALUATION_BATCH = 400  # of others, for one batch of an evaluation
EVALUATION_BATCH_STEPS = 24.0  # that such a batch may take as long as
IDLE_EVALUATION_SECONDS = 0.5  # that a batch may take where nobody waits

logger = logging.getLogger(__name__)

EligibilityFn = Callable[[Request], bool]


@dataclass(frozen=True)
class PassTimings:
    """What passes took lately, in seconds; 0 before there was one.

    Attributes:
        step: of a pass that running streams wait for.
        read: of a prompt's token.
        evaluated: of a changed text's token.
    """

    step: float = 0.0
    read: float = 0.0
    evaluated: float = 0.0


class Scheduler:
    """Runs streams on a decoder.

    Attributes:
        max_running: streams that have a slot at a time.
        waiting: streams without a slot, in the order of their coming.
        running: streams with one.
        before_pass: called before each pass with its streams; what it raises is what the pass raises. None for nothing.
        measured: the pace of late; a tick goes by what it was at its beginning.
        needs_heartbeat: whether it is to be ticked from time to time, even where it has no work.
    """

    needs_heartbeat = False

    def __init__(self, runner: ModelRunner, *, max_running: int) -> None:
        self._runner = runner
        self.max_running = max_running
        self._retries_smaller = runner.ranks is None  # a pass for which memory ran out; other ranks may have had it
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.timings = self._step_timings = PassTimings()
        self._ticks_alone = 0  # of others, since an evaluation has had its turn
        self._together: int | None = None  # streams that fit a pass, once memory has run out
        self._num_fitting = 0  # passes since it ran out, or since more were tried
        self.before_pass: Callable[[Sequence[Request]], None] | None = None

    def submit(self, stream: Request) -> None:
        """Queue a stream."""
        if not stream.is_closed:
            stream.add_time("queue", -time.perf_counter())
            self.waiting.append(stream)

    def cancel(self, stream: Request) -> None:
        """End a stream as it is."""
        stream.close()
        if stream in self.waiting:
            self.waiting.remove(stream)
        if stream in self.running:
            self.running.remove(stream)

    def step(self, ready: EligibilityFn = lambda stream: True) -> Iterator[None]:
        """Do what is due for the streams that are `ready`; stops after every pass, for events to be taken."""
        self._step_timings = self.timings
        self.admit()
        streams = [stream for stream in self.running if ready(stream)]
        for stream in streams:
            stream.adapt_chunk_size(self._chunk_size)
        if decoding := [stream for stream in streams if stream.phase is RequestPhase.DECODE]:
            yield from self._decode(self._limit_batch(decoding))
        if explaining := [stream for stream in streams if stream.phase is RequestPhase.EXPLAIN]:
            yield from self._explain(explaining)
        analysing = [
            stream for stream in streams if stream.phase is RequestPhase.POST_HOC and stream.pass_budget is None
        ]
        if analysing:
            yield from self._analyse(analysing[0])
        if reading := [stream for stream in streams if stream.phase is RequestPhase.PREFILL]:
            yield from self._prefill(reading, alone=not decoding and not explaining and not analysing)
        if evaluating := [stream for stream in streams if stream.phase is RequestPhase.POST_HOC and stream.pass_budget]:
            alone = not (decoding or explaining or analysing or reading)
            self._ticks_alone += 1
            if alone or self._ticks_alone >= STEPS_PER_EVALUATION_BATCH:
                self._ticks_alone = 0
                yield from self._evaluate(evaluating[0], alone=alone)
        self.running = [stream for stream in self.running if not stream.is_closed]

    def has_work(self, ready: EligibilityFn = lambda stream: True) -> bool:
        """Whether a tick would do anything."""
        self.admit()
        return any(ready(stream) for stream in self.running)

    @property
    def num_reserved_tokens(self) -> int:
        """Places for keys and values that running streams have; may be read from any thread."""
        slots = [stream.slot for stream in tuple(self.running)]
        return sum(slot.capacity for slot in slots if slot is not None)

    @property
    def prefix_cache_stats(self) -> tuple[int, int]:
        """Tokens that were looked for among earlier requests', and how many were found; may be read from any thread."""
        return self._runner.pool.num_queried_tokens, self._runner.pool.num_hit_tokens

    @property
    def _chunk_size(self) -> int:
        """What streams use that leave it to the engine: while others wait, as many as fill a pass together."""
        if not self.waiting:
            return DEFAULT_CHUNK_SIZE
        return max(DEFAULT_CHUNK_SIZE, MAX_EXPLAINED_TOKENS[self._runner.processor] // max(1, len(self.running)))

    def admit(self) -> None:
        """Let in who waits, as far as there is room."""
        while self.waiting and len(self.running) < self.max_running:
            stream = self.waiting[0]
            slot = self._runner.pool.allocate(stream.max_num_tokens, stream.ids, stream.tenant, is_long=stream.is_long)
            if slot is None:
                return
            self.waiting.popleft()
            stream.start(slot)
            stream.add_time("queue", time.perf_counter())
            self.running.append(stream)

    def _decode(self, streams: Sequence[Request]) -> Iterator[None]:
        """The next token of each."""
        began = time.perf_counter()
        yield from self._logits_pass([(stream, stream.decode_chunk()) for stream in streams])
        self.timings = replace(self.timings, step=_ema(self.timings.step, time.perf_counter() - began))

    def _explain(self, streams: Sequence[Request]) -> Iterator[None]:
        """A chunk of tokens of each, for as many as fit a pass."""
        lengths = accumulate(stream.chunk_length for stream in streams)
        chosen = streams[: max(1, sum(length <= MAX_EXPLAINED_TOKENS[self._runner.processor] for length in lengths))]
        chosen = self._limit_batch(chosen)
        self._round_robin(chosen)
        again = [stream for stream in chosen if stream.num_unexplained]
        new = [stream for stream in chosen if not stream.num_unexplained]
        if again:
            yield from self._replay(again)
        if new := [stream for stream in new if not stream.is_closed]:
            yield from self._logits_pass([(stream, stream.forced_chunk()) for stream in new])

    def _analyse(self, stream: Request) -> Iterator[None]:
        """Go on with one stream's completion."""
        self._round_robin([stream])
        began = time.perf_counter()
        with self._passing([stream]):
            self._begin([stream])
            stream.analyse()
        _charge([stream], "attribution", began)
        yield

    def _evaluate(self, stream: Request, *, alone: bool) -> Iterator[None]:
        """A batch of an evaluation, or a pass of a method that it evaluates."""
        pass_budget = stream.pass_budget
        if pass_budget is None:
            raise ValueError("an evaluation has an pass_budget")
        seconds = IDLE_EVALUATION_SECONDS if alone else EVALUATION_BATCH_STEPS * self._step_timings.step
        # Before the first batch, a token is taken to need as long as a prompt's.
        if a_token := self._step_timings.evaluated or self._step_timings.read:
            pass_budget.tokens = max(1, min(pass_budget.most, int(seconds / a_token)))
        used, began = pass_budget.used, time.perf_counter()
        yield from self._analyse(stream)
        if num_tokens := pass_budget.used - used:
            a_token = (time.perf_counter() - began) / num_tokens
            self.timings = replace(self.timings, evaluated=_ema(self.timings.evaluated, a_token))

    def _prefill(self, streams: Sequence[Request], *, alone: bool) -> Iterator[None]:
        """Pieces of prompts, until the pass is full."""
        room, least = (
            limits[self._runner.processor] for limits in (MAX_PREFILL_CHUNK_TOKENS, MIN_PREFILL_CHUNK_TOKENS)
        )
        if not alone and self._step_timings.read:
            room = max(least, min(room, int(self._step_timings.step / self._step_timings.read)))
        work: list[tuple[Request, SequenceChunk]] = []
        for stream in self._limit_batch(streams):
            if room:
                work.append((stream, stream.prefill_chunk(room)))
                room -= len(work[-1][1].ids)
        chosen = [stream for stream, _ in work]
        self._round_robin(chosen)
        began = time.perf_counter()
        with self._passing(chosen):
            self._begin(chosen)
            self._runner.read([part for _, part in work])
            for stream in chosen:
                stream.emit_prompt_progress()
        _charge(chosen, "prefill", began)
        num_tokens = sum(len(part.ids) for _, part in work)
        a_token = (time.perf_counter() - began) / num_tokens
        self.timings = replace(self.timings, read=_ema(self.timings.read, a_token))
        yield

    def _logits_pass(self, work: Sequence[tuple[Request, SequenceChunk]]) -> Iterator[None]:
        """Read the streams' parts and find the tokens after them, with their scores where a part is explained."""
        streams, parts = [stream for stream, _ in work], [part for _, part in work]
        began = time.perf_counter()
        with self._passing(streams):
            self._begin(streams)
            if all(part.explain is None for part in parts):
                is_step = all(len(part.ids) == 1 for part in parts)
                _take_logits(work, self._runner.step(parts) if is_step else self._runner.logits(parts))
                _tell(streams)
                _charge(streams, "decode", began)
            else:
                explained = self._runner.explained_pass(parts)
                targets = _take_logits(work, explained.logits)
                explained.start(targets)
                _tell(streams)
                _charge(streams, "decode", began)
                yield  # tokens leave before their scores are computed
                began = time.perf_counter()
                explaining = [stream for stream, part in work if part.explain is not None]
                _take_heat_maps(explaining, explained.heat_maps(targets))
                _charge(explaining, "attribution", began)
        yield

    def _replay(self, streams: Sequence[Request]) -> Iterator[None]:
        """Read tokens once more that wait for their scores."""
        began = time.perf_counter()
        with self._passing(streams):
            self._begin(streams)
            chunks = [stream.replay_chunk() for stream in streams]
            targets = [target for _, known in chunks for target in known]
            _take_heat_maps(streams, self._runner.replay([part for part, _ in chunks], targets))
            _charge(streams, "attribution", began)
        yield

    def _limit_batch(self, streams: Sequence[Request]) -> Sequence[Request]:
        """As many as fit a pass, where memory has run out before; the others have the next turn."""
        if self._together is None or len(streams) <= self._together:
            return streams
        chosen = streams[: self._together]
        self._round_robin(chosen)
        return chosen

    @contextmanager
    def _passing(self, streams: Sequence[Request]) -> Iterator[None]:
        """A pass: what goes wrong in it ends its own streams and nothing else.

        Where memory runs out in a pass of several, none of them ends: they are tried again in smaller passes. Only one
        that does not fit alone fails.
        """
        before = [(stream, stream.num_tokens, stream.num_computed_tokens) for stream in streams]
        try:
            with _failing(streams):
                try:
                    yield
                    self._grow_batch_after_oom(len(streams))
                except Exception as error:
                    if not (self._retries_smaller and is_out_of_memory(error)):
                        raise
                    if len(streams) == 1:
                        raise OutOfMemoryError from None
                    logger.warning("memory ran out in a pass of %d streams; fewer are tried", len(streams))
                    self._together, self._num_fitting = max(1, len(streams) // 2), 0
                    error.with_traceback(None)
                    for stream, num_tokens, num_computed_tokens in before:
                        stream.roll_back(num_tokens, num_computed_tokens)
                    free_caches()
        finally:
            if any(isinstance(stream.error, OutOfMemoryError) for stream in streams):
                free_caches()

    def _begin(self, streams: Sequence[Request]) -> None:
        if self.before_pass is not None:
            self.before_pass(streams)

    def _grow_batch_after_oom(self, count: int) -> None:
        """A pass of so many fitted: after a while, larger ones are tried again."""
        if self._together is not None and count >= self._together:
            self._num_fitting += 1
            if self._num_fitting >= PASSES_BEFORE_GROWTH:
                self._together, self._num_fitting = 2 * self._together, 0
                if self._together >= self.max_running:
                    self._together = None

    def seconds_left(self, stream: Request) -> float:
        """About how long a stream will still run at the speed of lately, if its completion is as long as it may be."""
        reading = stream.num_prefill_left * self.timings.read
        return reading + (stream.max_num_tokens - stream.num_tokens) * self.timings.step + stream.post_hoc_seconds_left

    def _round_robin(self, served: Sequence[Request]) -> None:
        """Others come first the next time."""
        self.running = [stream for stream in self.running if stream not in served] + list(served)


def _take_logits(work: Sequence[tuple[Request, SequenceChunk]], logits: Tensor) -> list[Target | None]:
    """Hand each stream what its rows of logits say; what is explained of each row."""
    targets: list[Target | None] = []
    distributions = iter(Distribution.of(logits))
    for stream, part in work:
        chosen: Sequence[Target | None] = [None] * len(part.ids)  # a stream that fails has none
        with _failing([stream]):
            chosen = stream.add_tokens(list(islice(distributions, len(part.ids))))
        targets += chosen
    return targets


def _tell(streams: Sequence[Request]) -> None:
    """Have streams tell the tokens that they took."""
    for stream in streams:
        if not stream.is_closed:
            with _failing([stream]):
                stream.emit_tokens()


def _take_heat_maps(streams: Sequence[Request], heat_maps: Sequence[Tensor]) -> None:
    for stream, heat_map in zip(streams, heat_maps, strict=True):
        if not stream.is_closed:  # as one is that failed, or was cancelled in the middle of the pass
            with _failing([stream]):
                stream.add_attributions(heat_map)


@contextmanager
def _failing(streams: Sequence[Request]) -> Iterator[None]:
    """What goes wrong in a pass ends its own streams and nothing else."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, EngineError):
            logger.exception("a pass of the model failed")
        error.with_traceback(None)  # its frames hold the pass's graph
        for stream in streams:
            stream.fail(error)


def _charge(streams: Sequence[Request], bucket: TimingBucket, began: float) -> None:
    """A pass is over."""
    for stream in streams:
        stream.add_time(bucket, time.perf_counter() - began)
        stream.finish_if_done()


def _ema(before: float, now: float) -> float:
    """A running mean that forgets."""
    return now if before == 0 else 0.8 * before + 0.2 * now
