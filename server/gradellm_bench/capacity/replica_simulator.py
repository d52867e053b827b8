"""One server's scheduler on a model of its passes: what `gradellm_engine.core.scheduler` does, without a model to run.

A tick does the same in the same order: admit, one token of every stream, chunks that are due, a piece of prompts that
takes about as long as the step before it, a batch of an evaluation every so many ticks. Limits are imported from the
scheduler, so that neither drifts. What is left out: reused prefixes, places between others' in the memory of keys and
values that are too short to be used, and clients that read slowly.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gradellm_bench.capacity.costs import Costs, read_work
from gradellm_bench.capacity.measuring import Kind
from gradellm_bench.capacity.request_metrics import Served
from gradellm_bench.capacity.traffic import EVALUATED_TEXTS, Mode, SimulatedRequest
from gradellm_engine.compilation.cuda_graphs import MOST_RECORDINGS, pad_to_bucket
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE
from gradellm_engine.core.scheduler import (
    EVALUATION_BATCH_STEPS,
    IDLE_EVALUATION_SECONDS,
    MAX_EXPLAINED_TOKENS,
    MAX_PREFILL_CHUNK_TOKENS,
    MIN_PREFILL_CHUNK_TOKENS,
    STEPS_PER_EVALUATION_BATCH,
)
from gradellm_engine.passes.batched import StepShape


@dataclass(frozen=True)
class ReplicaSettings:
    """A server's limits, by the names of its flags.

    Attributes:
        max_running: requests that run at a time.
        kv_tokens: places for keys and values of all of them together.
        max_queued: requests that may wait.
        max_queued_tokens: tokens of all that wait for memory.
        min_piece_tokens: least piece of a prompt that is read beside steps of others; None for the scheduler's own.
        records: whether a step of a shape that is not kept takes the time of its recording.
    """

    max_running: int = 16
    kv_tokens: int = 262_144
    max_queued: int = 64
    max_queued_tokens: int = 262_144
    min_piece_tokens: int | None = None
    records: bool = True


class _Stream:
    """A request that is under way."""

    __slots__ = ("held", "left", "mode", "num_chosen", "pending", "request", "served", "unread")

    def __init__(self, served: Served) -> None:
        self.served = served
        self.request: SimulatedRequest = served.request
        self.mode = served.request.mode
        self.unread = max(0, self.request.prompt_tokens - 1)
        self.held = 0
        self.num_chosen = 0
        self.pending = 0  # tokens that wait for their scores
        # Of an evaluation: tokens of changed texts that are still to be read, its own reading before.
        self.left = EVALUATED_TEXTS * (self.request.prompt_tokens + self.request.answer_tokens)
        if self.mode is Mode.EVALUATE:
            self.unread += self.request.answer_tokens

    @property
    def is_complete(self) -> bool:
        return self.num_chosen >= self.request.answer_tokens


class Replica:
    """A simulated server.

    Attributes:
        served: what became of each request, in their order.
        busy_seconds: spent in passes.
        recordings: steps that were recorded.
    """

    def __init__(self, costs: Costs, settings: ReplicaSettings) -> None:
        self._costs, self._settings = costs, settings
        self._most_explained = MAX_EXPLAINED_TOKENS[costs.processor]
        self._most_read = MAX_PREFILL_CHUNK_TOKENS[costs.processor]
        self._least_read = settings.min_piece_tokens or MIN_PREFILL_CHUNK_TOKENS[costs.processor]
        self._now = 0.0
        self._waiting: deque[_Stream] = deque()
        self._running: list[_Stream] = []
        self._places = settings.kv_tokens
        self._waiting_places = 0
        self._step_seconds = self._read_seconds = 0.0
        self._ticks_alone = 0
        self._shapes: OrderedDict[StepShape, None] = OrderedDict()
        self.busy_seconds = 0.0
        self._busy: list[tuple[float, float]] = []  # stretches of time
        self.cuda_graphs = 0
        self.served: list[Served] = []
        self._coming: deque[Served] = deque()

    def run(self, requests: Sequence[SimulatedRequest]) -> list[Served]:
        """Run requests, in the order of their coming, to their end."""
        self.served = [Served(request) for request in requests]
        self._coming = deque(self.served)
        while self._coming or self._waiting or self._running:
            self._take_in()
            self._admit()
            if not self._running:
                if self._coming:
                    self._now = max(self._now, self._coming[0].request.arrival)
                    continue
                raise ValueError(
                    f"a request of {self._waiting[0].request.places} tokens does not fit the memory for keys and "
                    f"values, which holds {self._settings.kv_tokens}"
                )
            self._tick()
        return self.served

    def busy_between(self, start: float, end: float) -> float:
        """Seconds of that time that were spent in passes."""
        return sum(max(0.0, min(end, after) - max(start, before)) for before, after in self._busy)

    def _pass(self, seconds: float) -> None:
        if self._busy and self._busy[-1][1] == self._now:
            self._busy[-1] = (self._busy[-1][0], self._now + seconds)
        else:
            self._busy.append((self._now, self._now + seconds))
        self._now += seconds
        self.busy_seconds += seconds

    def _take_in(self) -> None:
        """What has come by now: to the queue, or refused."""
        while self._coming and self._coming[0].request.arrival <= self._now:
            its = self._coming.popleft()
            is_full = len(self._waiting) + len(self._running) >= self._settings.max_running + self._settings.max_queued
            if is_full or (self._waiting and self._waiting_places >= self._settings.max_queued_tokens):
                its.refused, its.ended = True, its.request.arrival
                continue
            self._waiting.append(_Stream(its))
            self._waiting_places += its.request.places

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._settings.max_running:
            stream = self._waiting[0]
            if stream.request.places > self._places:
                return
            self._waiting.popleft()
            self._waiting_places -= stream.request.places
            self._places -= stream.request.places
            self._running.append(stream)

    def _tick(self) -> None:
        chunk_size = DEFAULT_CHUNK_SIZE
        if self._waiting:
            chunk_size = max(chunk_size, self._most_explained // max(1, len(self._running)))
        decoding = [its for its in self._running if self._can_decode(its, chunk_size)]
        if decoding:
            self._decode(decoding)
        explaining = [its for its in self._running if its.pending and (its.pending >= chunk_size or its.is_complete)]
        if explaining:
            self._explain(explaining, chunk_size)
        if reading := [its for its in self._running if its.unread]:
            self._read(reading, alone=not decoding and not explaining)
        evaluating = [its for its in self._running if its.mode is Mode.EVALUATE and not its.unread and its.left > 0]
        if evaluating:
            alone = not (decoding or explaining or reading)
            self._ticks_alone += 1
            if alone or self._ticks_alone >= STEPS_PER_EVALUATION_BATCH:
                self._ticks_alone = 0
                self._evaluate(evaluating[0], alone=alone)
        self._end()

    @staticmethod
    def _can_decode(its: _Stream, chunk_size: int) -> bool:
        return its.mode is not Mode.EVALUATE and not its.unread and not its.is_complete and its.pending < chunk_size

    def _decode(self, streams: Sequence[_Stream]) -> None:
        """The next token of each, and the scores of those that are explained at once."""
        began, count = self._now, len(streams)
        explained = [its for its in streams if its.mode is Mode.PER_TOKEN]
        context = sum(its.held for its in streams)
        self._record(count, 1, streams, is_new=True, is_explained=bool(explained))
        self._pass(self._costs.step(count, context, explained=bool(explained)))
        for its in streams:
            its.held += 1
            its.num_chosen += 1
            its.served.tokens.append(self._now)
            if its.mode is Mode.CHUNKED:
                its.pending += 1
        self._take_in()
        if explained:
            self._pass(self._costs.scores(count, context))
            for its in explained:
                its.served.vectors.append(self._now)
        self._step_seconds = _lately(self._step_seconds, self._now - began)

    def _explain(self, streams: Sequence[_Stream], chunk_size: int) -> None:
        """Chunks that are due, as many as fit a pass."""
        chosen: list[_Stream] = []
        tokens = work = 0
        for its in streams:
            length = min(chunk_size, its.pending)
            if chosen and tokens + length > self._most_explained:
                break
            chosen.append(its)
            tokens += length
            work += length * its.held
        self._to_the_back(chosen)
        longest = max(min(chunk_size, its.pending) for its in chosen)
        self._record(len(chosen), longest, chosen, is_new=False, is_explained=True)
        self._pass(self._costs.replay(tokens, work))
        for its in chosen:
            length = min(chunk_size, its.pending)
            its.pending -= length
            its.served.vectors += [self._now] * length

    def _read(self, streams: Sequence[_Stream], *, alone: bool) -> None:
        """Pieces of prompts, until the pass is full."""
        room = self._most_read
        if not alone and self._read_seconds:
            room = max(self._least_read, min(room, int(self._step_seconds / self._read_seconds)))
        chosen, tokens, work = [], 0, 0
        for its in streams:
            if not room:
                break
            piece = min(room, its.unread)
            room -= piece
            tokens += piece
            work += read_work(piece, its.held)
            its.unread -= piece
            its.held += piece
            chosen.append(its)
        self._to_the_back(chosen)
        seconds = self._costs.read(tokens, work)
        self._pass(seconds)
        self._read_seconds = _lately(self._read_seconds, seconds / tokens)

    def _evaluate(self, its: _Stream, *, alone: bool) -> None:
        """A batch of changed texts, which take as long as the same tokens of prompts."""
        seconds = IDLE_EVALUATION_SECONDS if alone else EVALUATION_BATCH_STEPS * self._step_seconds
        tokens = max(1, min(its.left, int(seconds / max(1e-9, self._read_seconds))))
        its.left -= tokens
        self._pass(tokens * self._read_seconds)
        self._to_the_back([its])

    def _end(self) -> None:
        left = []
        for its in self._running:
            is_over = its.left <= 0 if its.mode is Mode.EVALUATE else its.is_complete and not its.pending
            if is_over:
                its.served.ended = self._now
                self._places += its.request.places
            else:
                left.append(its)
        self._running = left
        self._take_in()

    def _record(self, rows: int, tokens: int, streams: Sequence[_Stream], *, is_new: bool, is_explained: bool) -> None:
        """Where steps are recorded, one of a shape that is not kept takes longer."""
        kind: Kind = "replay" if not is_new else "explained_step" if is_explained else "step"
        seconds = self._costs.recording_seconds.get(kind, 0.0)
        if not seconds or not self._settings.records:
            return
        width = max(its.held for its in streams) + 1
        # Streams are explained by the same switches or not at all, which a flag stands for here.
        shape = pad_to_bucket(StepShape(rows, tokens, width, is_new, switches=None, has_domains=is_explained))
        if shape in self._shapes:
            self._shapes.move_to_end(shape)
            return
        self._shapes[shape] = None
        self.cuda_graphs += 1
        if len(self._shapes) > MOST_RECORDINGS:
            self._shapes.popitem(last=False)
        self._pass(seconds)

    def _to_the_back(self, served: Sequence[_Stream]) -> None:
        """Others come first the next time."""
        gone = set(map(id, served))
        self._running = [its for its in self._running if id(its) not in gone] + list(served)


def _lately(before: float, now: float) -> float:
    """A running mean that forgets, as the scheduler's."""
    return now if before == 0 else 0.8 * before + 0.2 * now
