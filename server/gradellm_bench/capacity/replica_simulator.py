"""Simulates a server's scheduler (`gradellm_engine.core.scheduler`) on a cost model of its passes.

A step does the same in the same order: admission, a decode step of all streams, chunks of prompts as large as the
longest gap allows, replays of chunks that are due, and every so many steps a batch of an evaluation. Limits are
imported from the scheduler, so that they cannot drift apart. Not simulated: the prefix cache, fragmentation of the KV
cache, and slow clients; a pass that holds a decode step and prompts takes as long as both.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gradellm_bench.capacity.costs import Costs, read_work
from gradellm_bench.capacity.measurements import Kind
from gradellm_bench.capacity.request_metrics import RequestRecord
from gradellm_bench.capacity.traffic import EVALUATED_TEXTS, Mode, SimulatedRequest
from gradellm_engine.compilation.graph_cache import MAX_GRAPHS, pad_to_bucket
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE
from gradellm_engine.core.scheduler import (
    EVALUATION_BATCH_STEPS,
    IDLE_EVALUATION_SECONDS,
    MAX_EXPLAINED_TOKENS,
    STEPS_PER_EVALUATION_BATCH,
)
from gradellm_engine.core.scheduling.pass_timings import (
    DEFAULT_MAX_GAP_SECONDS,
    MAX_PREFILL_CHUNK_TOKENS,
    PassTimings,
    count_passed_over,
    prefill_order,
)
from gradellm_engine.passes.batched import StepShape


@dataclass(frozen=True)
class ReplicaSettings:
    """A server's limits, named like its flags.

    Attributes:
        max_running: requests that run at a time.
        kv_tokens: KV cache slots of all requests.
        max_queued: requests in the queue.
        max_queued_tokens: KV cache slots of all requests in the queue.
        max_gap: seconds between two tokens of a stream that prompts may not exceed.
        captures_graphs: whether a step of a new shape takes the time of a CUDA graph capture.
    """

    max_running: int = 16
    kv_tokens: int = 262_144
    max_queued: int = 64
    max_queued_tokens: int = 262_144
    max_gap: float = DEFAULT_MAX_GAP_SECONDS
    captures_graphs: bool = True


class _ActiveRequest:
    """A request in the queue or running."""

    __slots__ = (
        "held",
        "mode",
        "num_chosen",
        "num_left",
        "num_passed_over",
        "num_prefill_left",
        "pending",
        "request",
        "served",
    )

    def __init__(self, served: RequestRecord) -> None:
        self.served = served
        self.request: SimulatedRequest = served.request
        self.mode = served.request.mode
        self.num_passed_over = 0
        self.num_prefill_left = max(0, self.request.prompt_tokens - 1)
        self.held = 0
        self.num_chosen = 0
        self.pending = 0  # tokens without scores so far
        # Of an evaluation: tokens of perturbed texts still to run, after its own prefill.
        self.num_left = EVALUATED_TEXTS * (self.request.prompt_tokens + self.request.answer_tokens)
        if self.mode is Mode.EVALUATE:
            self.num_prefill_left += self.request.answer_tokens

    @property
    def is_complete(self) -> bool:
        return self.num_chosen >= self.request.answer_tokens


class Replica:
    """A simulated server.

    Attributes:
        served: records of the requests, in order.
        busy_seconds: seconds spent in passes.
        cuda_graphs: number of captured CUDA graphs.
    """

    def __init__(self, costs: Costs, settings: ReplicaSettings) -> None:
        self._costs, self._settings = costs, settings
        self._most_explained = MAX_EXPLAINED_TOKENS[costs.processor]
        self._now = 0.0
        self._waiting: deque[_ActiveRequest] = deque()
        self._running: list[_ActiveRequest] = []
        self._free_slots = settings.kv_tokens
        self._queued_slots = 0
        self._timings = PassTimings()
        self._steps_since_evaluation = 0
        self._num_prefills = 0
        self._shapes: OrderedDict[StepShape, None] = OrderedDict()
        self.busy_seconds = 0.0
        self._busy: list[tuple[float, float]] = []  # intervals of time
        self.cuda_graphs = 0
        self.served: list[RequestRecord] = []
        self._arrivals: deque[RequestRecord] = deque()

    def run(self, requests: Sequence[SimulatedRequest]) -> list[RequestRecord]:
        """Run requests, in order of arrival, to their end."""
        self.served = [RequestRecord(request) for request in requests]
        self._arrivals = deque(self.served)
        while self._arrivals or self._waiting or self._running:
            self._accept_arrivals()
            self._admit()
            if not self._running:
                if self._arrivals:
                    self._now = max(self._now, self._arrivals[0].request.arrival)
                    continue
                raise ValueError(
                    f"a request of {self._waiting[0].request.slots} tokens does not fit the KV cache, which "
                    f"holds {self._settings.kv_tokens}"
                )
            self._step()
        return self.served

    def busy_between(self, start: float, end: float) -> float:
        """Seconds between `start` and `end` that were spent in passes."""
        return sum(max(0.0, min(end, after) - max(start, before)) for before, after in self._busy)

    def _pass(self, seconds: float) -> None:
        if self._busy and self._busy[-1][1] == self._now:
            self._busy[-1] = (self._busy[-1][0], self._now + seconds)
        else:
            self._busy.append((self._now, self._now + seconds))
        self._now += seconds
        self.busy_seconds += seconds

    def _accept_arrivals(self) -> None:
        """Queue or reject the requests that have arrived by now."""
        while self._arrivals and self._arrivals[0].request.arrival <= self._now:
            record = self._arrivals.popleft()
            is_full = len(self._waiting) + len(self._running) >= self._settings.max_running + self._settings.max_queued
            if is_full or (self._waiting and self._queued_slots >= self._settings.max_queued_tokens):
                record.refused, record.ended = True, record.request.arrival
                continue
            self._waiting.append(_ActiveRequest(record))
            self._queued_slots += record.request.slots

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._settings.max_running:
            active = self._waiting[0]
            if active.request.slots > self._free_slots:
                return
            self._waiting.popleft()
            self._queued_slots -= active.request.slots
            self._free_slots -= active.request.slots
            self._running.append(active)

    def _step(self) -> None:
        chunk_size = DEFAULT_CHUNK_SIZE
        if self._waiting:
            chunk_size = max(chunk_size, self._most_explained // max(1, len(self._running)))
        began, prefill_seconds = self._now, 0.0
        decoding = [active for active in self._running if self._can_decode(active, chunk_size)]
        reading = [active for active in self._running if active.num_prefill_left]
        is_mixed = bool(reading) and self._costs.processor == "cpu"
        if decoding and not is_mixed:
            self._decode(decoding)
        if reading:
            prefill_seconds = self._prefill(reading, decoding if is_mixed else [], is_idle=not decoding)
        explaining = [
            active
            for active in self._running
            if active.pending and (active.pending >= chunk_size or active.is_complete)
        ]
        if explaining:
            self._explain(explaining, chunk_size)
        if decoding:
            self._timings = self._timings.after_cycle(self._now - began - prefill_seconds)
        evaluating = [
            active
            for active in self._running
            if active.mode is Mode.EVALUATE and not active.num_prefill_left and active.num_left > 0
        ]
        if evaluating:
            alone = not (decoding or explaining or reading)
            self._steps_since_evaluation += 1
            if alone or self._steps_since_evaluation >= STEPS_PER_EVALUATION_BATCH:
                self._steps_since_evaluation = 0
                self._evaluate(evaluating[0], alone=alone)
        self._end()

    @staticmethod
    def _can_decode(active: _ActiveRequest, chunk_size: int) -> bool:
        return (
            active.mode is not Mode.EVALUATE
            and not active.num_prefill_left
            and not active.is_complete
            and active.pending < chunk_size
        )

    def _decode(self, active_requests: Sequence[_ActiveRequest]) -> None:
        """A decode step of all streams, and the scores of those explained token by token."""
        began, count = self._now, len(active_requests)
        explained = [active for active in active_requests if active.mode is Mode.PER_TOKEN]
        context = sum(active.held for active in active_requests)
        self._record(count, 1, active_requests, is_new=True, is_explained=bool(explained))
        self._pass(self._costs.step(count, context, explained=bool(explained)))
        self._timings = self._timings.after_step(self._now - began)
        self._add_tokens(active_requests)
        self._accept_arrivals()
        if explained:
            self._pass(self._costs.scores(count, context))
            for active in explained:
                active.served.vectors.append(self._now)

    def _add_tokens(self, active_requests: Sequence[_ActiveRequest]) -> None:
        for active in active_requests:
            active.held += 1
            active.num_chosen += 1
            active.served.tokens.append(self._now)
            if active.mode is Mode.CHUNKED:
                active.pending += 1

    def _explain(self, active_requests: Sequence[_ActiveRequest], chunk_size: int) -> None:
        """Replays of chunks that are due, as many as fit a pass."""
        chosen: list[_ActiveRequest] = []
        tokens = work = 0
        for active in active_requests:
            length = min(chunk_size, active.pending)
            if chosen and tokens + length > self._most_explained:
                break
            chosen.append(active)
            tokens += length
            work += length * active.held
        self._move_to_back(chosen)
        longest = max(min(chunk_size, active.pending) for active in chosen)
        self._record(len(chosen), longest, chosen, is_new=False, is_explained=True)
        self._pass(self._costs.replay(tokens, work))
        for active in chosen:
            length = min(chunk_size, active.pending)
            active.pending -= length
            active.served.vectors += [self._now] * length

    def _prefill(
        self, active_requests: Sequence[_ActiveRequest], decoding: Sequence[_ActiveRequest], *, is_idle: bool
    ) -> float:
        """Prefill chunks, until the pass is full, with a decode step of `decoding`; the seconds that they take."""
        processor = self._costs.processor
        room = MAX_PREFILL_CHUNK_TOKENS[processor]
        if not is_idle:
            room = self._timings.num_prefill_tokens(self._settings.max_gap, processor)
        chosen, tokens, work = [], 0, 0
        for active in prefill_order(active_requests, self._num_prefills):
            if not room:
                break
            chunk = min(room, active.num_prefill_left)
            room -= chunk
            tokens += chunk
            work += read_work(chunk, active.held)
            active.num_prefill_left -= chunk
            active.held += chunk
            chosen.append(active)
        count_passed_over(active_requests, chosen)
        self._num_prefills += 1
        seconds = self._costs.read(tokens, work)
        self._timings = self._timings.after_prefill(seconds, tokens)
        if not decoding:
            self._pass(seconds)
            return seconds
        explained = [active for active in decoding if active.mode is Mode.PER_TOKEN]
        context = sum(active.held for active in decoding)
        self._pass(seconds + self._costs.step(len(decoding), context, explained=False))
        self._add_tokens(decoding)
        if explained:
            held = sum(active.held for active in explained)
            self._pass(self._costs.replay(len(explained), held))
            for active in explained:
                active.served.vectors.append(self._now)
        return seconds

    def _evaluate(self, active: _ActiveRequest, *, alone: bool) -> None:
        """A batch of perturbed texts; its cost is that of as many prefill tokens."""
        timings, seconds = self._timings, IDLE_EVALUATION_SECONDS
        if not alone:
            seconds = min(EVALUATION_BATCH_STEPS * timings.step, timings.seconds_left(self._settings.max_gap))
        tokens = max(1, min(active.num_left, int(seconds / max(1e-9, timings.prefill_token))))
        active.num_left -= tokens
        self._pass(tokens * timings.prefill_token)
        self._move_to_back([active])

    def _end(self) -> None:
        remaining = []
        for active in self._running:
            is_over = (
                active.num_left <= 0 if active.mode is Mode.EVALUATE else active.is_complete and not active.pending
            )
            if is_over:
                active.served.ended = self._now
                self._free_slots += active.request.slots
            else:
                remaining.append(active)
        self._running = remaining
        self._accept_arrivals()

    def _record(
        self, rows: int, tokens: int, active_requests: Sequence[_ActiveRequest], *, is_new: bool, is_explained: bool
    ) -> None:
        """Capture a CUDA graph for a shape that has none; takes time only where CUDA graphs are used."""
        kind: Kind = "replay" if not is_new else "explained_step" if is_explained else "step"
        seconds = self._costs.recording_seconds.get(kind, 0.0)
        if not seconds or not self._settings.captures_graphs:
            return
        width = max(active.held for active in active_requests) + 1
        # All explained streams share their options here, so that a flag stands for them.
        shape = pad_to_bucket(StepShape(rows, tokens, width, is_new, switches=None, has_domains=is_explained))
        if shape in self._shapes:
            self._shapes.move_to_end(shape)
            return
        self._shapes[shape] = None
        self.cuda_graphs += 1
        if len(self._shapes) > MAX_GRAPHS:
            self._shapes.popitem(last=False)
        self._pass(seconds)

    def _move_to_back(self, served: Sequence[_ActiveRequest]) -> None:
        """Round-robin: streams that were served go to the end."""
        gone = set(map(id, served))
        self._running = [active for active in self._running if id(active) not in gone] + list(served)
