"""Continuous batching: which requests take part in the model's next pass.

A step does, in this order:

    1. admit     waiting requests, first come first served, up to max_running and while there is KV memory
    2. decode    one token of every request that can decode, in one pass; delivery per_token is explained in the pass
    3. prefill   chunks of prompts, the shortest first (chunked prefill); on a CPU in the same pass as the decode step
    4. explain   chunks that are due (delivery chunked, given and followed completions), up to MAX_EXPLAINED_TOKENS
    5. post-hoc  one request whose whole completion is explained, a pass or two, round-robin
    6. evaluate  a batch of perturbed texts of one evaluation, round-robin

Prompts are read in as few passes as the longest gap between two tokens of a stream allows (`max_gap`): a pass takes as
many prompt tokens as fit what the gap leaves beside the streams' own passes
(`gradellm_engine.core.scheduling.pass_timings`). With nothing else to run, chunks are large. Prompts with a common
prefix read it once: the others wait a pass, and copy it. On a CPU a pass with prompts is a decode step, too, so that
the weights are read once for both; tokens that are explained are then replayed after it, by themselves, and a prompt
that ends in the pass decodes its last token in it. On a GPU a decode step is a CUDA graph, and prompts have passes of
their own, which have a minimum duration, so chunks there have at least MIN_PREFILL_CHUNK_TOKENS. A request whose chunk
is due does not decode before the chunk is explained, so that scores are never later than `chunk_size` promises.

A followed completion is idle until a chunk of it is due. While others decode, a step explains one such chunk, of its
`chunk_size` tokens; else followed completions that are behind catch up in larger ones. They have slots of their own
number (`max_followed`), so that idle ones keep no other request waiting.

An evaluation runs at low priority: while other requests have work, it gets one batch every STEPS_PER_EVALUATION_BATCH
steps, which delays fewer than one token in a hundred, and such a batch takes no longer than EVALUATION_BATCH_STEPS
decode steps, and fits the gap. With no other work, its batches take about IDLE_EVALUATION_SECONDS, so that a new
request waits no longer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, islice

from torch import Tensor

from gradellm_engine.core.following.agreement import GivenLogprobs
from gradellm_engine.core.following.request import FollowedRequest
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE, Request, RequestPhase, TimingBucket
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.core.scheduling.batch_limit import BatchLimit, fail_on_error
from gradellm_engine.core.scheduling.pass_timings import (
    DEFAULT_MAX_GAP_SECONDS,
    MAX_PREFILL_CHUNK_TOKENS,
    PassTimings,
    count_passed_over,
    prefill_order,
)
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk, Target

# Tokens of one explain pass: more tokens take longer without higher throughput.
MAX_EXPLAINED_TOKENS = {"cpu": 64, "cuda": 256}
DEFAULT_MAX_FOLLOWED = 64
STEPS_PER_EVALUATION_BATCH = 400
EVALUATION_BATCH_STEPS = 24.0  # duration of an evaluation's batch, in decode steps, while other requests run
IDLE_EVALUATION_SECONDS = 0.5  # duration of an evaluation's batch while no other request runs

EligibilityFn = Callable[[Request], bool]


class Scheduler:
    """Runs requests on one model.

    Attributes:
        max_running: requests that have a KV slot at a time, followed ones not counted.
        max_followed: followed requests that have a KV slot at a time.
        max_gap: seconds between two tokens of a stream that prompts may not exceed; see the module's docstring.
        waiting: requests without a slot, oldest first.
        running: requests with a slot, in round-robin order.
        before_pass: called before each pass with its requests; an exception that it raises fails the pass.
        timings: moving averages of durations; a step uses those from its beginning.
        needs_heartbeat: whether `step` has to be called from time to time even without work.
    """

    needs_heartbeat = False

    def __init__(
        self,
        runner: ModelRunner,
        *,
        max_running: int,
        max_followed: int = DEFAULT_MAX_FOLLOWED,
        max_gap: float = DEFAULT_MAX_GAP_SECONDS,
    ) -> None:
        self._runner = runner
        self.max_running, self.max_followed, self.max_gap = max_running, max_followed, max_gap
        self._batch_limit = BatchLimit(
            retries=runner.ranks is None
        )  # other ranks do not see that one ran out of memory
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.timings = self._step_timings = PassTimings()
        self._steps_since_evaluation = 0
        self._num_prefills = 0  # passes with prompts
        self.before_pass: Callable[[Sequence[Request]], None] | None = None

    def submit(self, request: Request) -> None:
        """Queue a request."""
        if not request.is_closed:
            request.add_time("queue", -time.perf_counter())
            self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request as it is."""
        request.close()
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running.remove(request)

    def append(self, request: FollowedRequest, ids: Sequence[int], logprobs: Sequence[GivenLogprobs] = ()) -> None:
        """Add tokens to a followed request; between two steps, as all three of these methods. See `FollowedRequest`."""
        request.append(ids, logprobs)

    def flush(self, request: FollowedRequest) -> None:
        """Explain what there is of a followed request."""
        request.flush()

    def finish(self, request: FollowedRequest) -> None:
        """End a followed request once it is explained."""
        request.finish()
        if request.is_closed and request in self.waiting:
            self.waiting.remove(request)

    def step(self, is_eligible: EligibilityFn = lambda request: True) -> Iterator[None]:
        """Run the passes that are due for eligible requests; yields after each, for events to be taken."""
        self._step_timings = self.timings
        self._prefill_seconds = 0.0
        began = time.perf_counter()
        self.admit()
        requests = [request for request in self.running if is_eligible(request)]
        has_decode = any(request.phase is RequestPhase.DECODE for request in requests)
        max_followed = 0 if has_decode else MAX_EXPLAINED_TOKENS[self._runner.processor]
        for request in requests:
            request.adapt_chunk_size(self._chunk_size, max_followed)
        decoding = self._limit_batch([request for request in requests if request.phase is RequestPhase.DECODE])
        prefilling = self._limit_batch([request for request in requests if request.phase is RequestPhase.PREFILL])
        is_idle = not any(_is_urgent(request) for request in requests if request not in prefilling)
        is_mixed = bool(prefilling) and self._runner.processor == "cpu" and self._batch_limit.max_requests is None
        if decoding and not is_mixed:
            yield from self._decode(decoding)
        if prefilling:
            yield from self._prefill(prefilling, decoding if is_mixed else [], is_mixed=is_mixed, is_idle=is_idle)
        explaining = [request for request in requests if request.phase is RequestPhase.EXPLAIN]
        if decoding:
            explaining = _with_one_followed(explaining)
        if explaining:
            yield from self._explain(explaining)
        if post_hoc := [r for r in requests if r.phase is RequestPhase.POST_HOC and r.pass_budget is None]:
            yield from self._run_post_hoc(post_hoc[0])
        if decoding:
            seconds = time.perf_counter() - began - self._prefill_seconds
            self.timings = self.timings.after_cycle(seconds)
        if evaluating := [r for r in requests if r.phase is RequestPhase.POST_HOC and r.pass_budget]:
            is_idle = not (decoding or explaining or post_hoc or prefilling)
            self._steps_since_evaluation += 1
            if is_idle or self._steps_since_evaluation >= STEPS_PER_EVALUATION_BATCH:
                self._steps_since_evaluation = 0
                yield from self._evaluate(evaluating[0], is_idle=is_idle)
        self.running = [request for request in self.running if not request.is_closed]

    def has_work(self, is_eligible: EligibilityFn = lambda request: True) -> bool:
        """Whether a step would run a pass."""
        self.admit()
        return any(request.phase is not RequestPhase.IDLE and is_eligible(request) for request in self.running)

    def seconds_left(self, request: Request) -> float:
        """An estimate of a request's remaining time at the current pace, if its completion gets its full length."""
        prefill = request.num_prefill_left * self.timings.prefill_token
        decode = (request.max_num_tokens - request.num_tokens) * self.timings.cycle
        return prefill + decode + request.post_hoc_seconds_left

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens that the KV slots of running requests have room for; may be read from any thread."""
        slots = [request.slot for request in tuple(self.running)]
        return sum(slot.capacity for slot in slots if slot is not None)

    @property
    def prefix_cache_stats(self) -> tuple[int, int]:
        """Prefix cache queries and hits, in tokens; may be read from any thread."""
        return self._runner.pool.num_queried_tokens, self._runner.pool.num_hit_tokens

    def admit(self) -> None:
        """Give KV slots to waiting requests, first come first served, up to the limits and while memory lasts."""
        left = self._slots_left
        for request in list(self.waiting):
            if left[request.is_followed] <= 0:
                continue
            slot = self._runner.pool.allocate(
                request.num_slot_tokens, request.ids, request.tenant, is_long=request.is_long
            )
            if slot is None:
                return
            left[request.is_followed] -= 1
            self.waiting.remove(request)
            request.start(slot)
            request.add_time("queue", time.perf_counter())
            self.running.append(request)

    @property
    def _slots_left(self) -> dict[bool, int]:
        """How many more followed requests may run, and how many others."""
        num_followed = sum(request.is_followed for request in self.running)
        return {True: self.max_followed - num_followed, False: self.max_running - len(self.running) + num_followed}

    @property
    def _may_admit(self) -> bool:
        """Whether a waiting request may run, if there is memory."""
        left = self._slots_left
        return any(left[request.is_followed] > 0 for request in self.waiting)

    @property
    def _chunk_size(self) -> int:
        """The chunk size of requests that set none: while requests wait, running requests fill an explain pass."""
        if not self.waiting:
            return DEFAULT_CHUNK_SIZE
        return max(DEFAULT_CHUNK_SIZE, MAX_EXPLAINED_TOKENS[self._runner.processor] // max(1, len(self.running)))

    # Passes -------------------------------------------------------------------------------------------------------

    def _decode(self, requests: Sequence[Request]) -> Iterator[None]:
        """The next token of each request."""
        began = time.perf_counter()
        passes = self._logits_pass([(request, request.decode_chunk()) for request in requests])
        next(passes)  # the tokens are there
        self.timings = self.timings.after_step(time.perf_counter() - began)
        yield
        yield from passes

    def _explain(self, requests: Sequence[Request]) -> Iterator[None]:
        """Scores of one chunk of each request, for as many requests as fit a pass."""
        lengths = accumulate(request.chunk_length for request in requests)
        chosen = requests[: max(1, sum(length <= MAX_EXPLAINED_TOKENS[self._runner.processor] for length in lengths))]
        chosen = self._limit_batch(chosen)
        self._round_robin(chosen)
        replayed = [request for request in chosen if request.must_replay]
        forced = [request for request in chosen if not request.must_replay]
        if replayed:
            yield from self._replay(replayed)
        if forced := [request for request in forced if not request.is_closed]:
            yield from self._logits_pass([(request, request.forced_chunk()) for request in forced])

    def _run_post_hoc(self, request: Request) -> Iterator[None]:
        """A pass or two of a post-hoc method or an evaluation."""
        self._round_robin([request])
        began = time.perf_counter()
        with self._run_pass([request]):
            self._announce([request])
            request.run_post_hoc()
        _add_time([request], "attribution", began)
        yield

    def _evaluate(self, request: Request, *, is_idle: bool) -> Iterator[None]:
        """A batch of perturbed texts of an evaluation, or a pass of a method that it evaluates."""
        pass_budget = request.pass_budget
        if pass_budget is None:
            raise ValueError("an evaluation needs a pass budget")
        timings = self._step_timings
        seconds = IDLE_EVALUATION_SECONDS
        if not is_idle:
            seconds = min(EVALUATION_BATCH_STEPS * timings.step, timings.seconds_left(self.max_gap))
        # Before the first batch, a token of a perturbed text is assumed to take as long as a prefill token.
        if token_seconds := timings.evaluation_token or timings.prefill_token:
            pass_budget.tokens = max(1, min(pass_budget.max_tokens, int(seconds / token_seconds)))
        used, began = pass_budget.used, time.perf_counter()
        yield from self._run_post_hoc(request)
        if num_tokens := pass_budget.used - used:
            self.timings = self.timings.after_evaluation(time.perf_counter() - began, num_tokens)

    def _prefill(
        self, requests: Sequence[Request], decoding: Sequence[Request], *, is_mixed: bool, is_idle: bool
    ) -> Iterator[None]:
        """Chunks of prompts, until the pass is full; a mixed pass is a decode step of `decoding`, too."""
        processor = self._runner.processor
        room = MAX_PREFILL_CHUNK_TOKENS[processor]
        if not is_idle:
            room = self._step_timings.num_prefill_tokens(self.max_gap, processor)
        prefill: list[tuple[Request, SequenceChunk]] = []
        unread = self._without_followers(requests)
        for request in prefill_order(unread, self._num_prefills):
            if room > 0:
                prefill.append((request, request.prefill_chunk(room)))
                room -= len(prefill[-1][1].ids)
        step = [(request, request.decode_chunk(is_mixed=True)) for request in decoding]
        if is_mixed:
            step += [
                (request, request.decode_chunk(after=chunk, is_mixed=True))
                for request, chunk in prefill
                if request.decodes_after(chunk)
            ]
        chosen, chunks = [request for request, _ in prefill], [chunk for _, chunk in prefill]
        if not (chunks or step):  # all that was left has been copied
            return
        count_passed_over(unread, chosen)
        self._num_prefills += 1
        taking_part = [*decoding, *chosen]
        began = time.perf_counter()
        with self._run_pass(taking_part):
            self._announce(taking_part)
            if step:
                _add_tokens(step, self._runner.step([chunk for _, chunk in step], chunks))
                _emit_tokens([request for request, _ in step])
            else:
                self._runner.prefill(chunks)
            for request in chosen:
                request.emit_prompt_progress()
        _add_time(decoding, "decode", began)
        _add_time(chosen, "prefill", began)
        if chunks:
            seconds = time.perf_counter() - began
            self._prefill_seconds = self._step_timings.prefill_seconds(seconds, has_step=bool(decoding))
            self.timings = self.timings.after_prefill(self._prefill_seconds, sum(len(chunk.ids) for chunk in chunks))
        yield

    def _without_followers(self, requests: Sequence[Request]) -> list[Request]:
        """The requests whose next tokens no other one reads; first, all take what others have computed by now."""
        pool = self._runner.pool
        for request in requests:
            request.extend_prefix(pool)
        unread = [request for request in requests if request.phase is RequestPhase.PREFILL]
        if not pool.reuses_prefixes:
            return unread
        # Of two that are equally far, the first reads.
        rank = {request: (-request.num_computed_tokens, place) for place, request in enumerate(unread)}
        ahead = {request: [other for other in unread if rank[other] < rank[request]] for request in unread}
        return [request for request in unread if not any(map(request.waits_for, ahead[request]))]

    def _logits_pass(self, work: Sequence[tuple[Request, SequenceChunk]]) -> Iterator[None]:
        """Read the requests' chunks, sample the tokens after them, and score those of chunks that are explained."""
        requests, chunks = [request for request, _ in work], [chunk for _, chunk in work]
        began = time.perf_counter()
        with self._run_pass(requests):
            self._announce(requests)
            if all(chunk.explain is None for chunk in chunks):
                is_decode_step = all(len(chunk.ids) == 1 for chunk in chunks)
                _add_tokens(work, self._runner.step(chunks) if is_decode_step else self._runner.logits(chunks))
                _emit_tokens(requests)
                _add_time(requests, "decode", began)
            else:
                explained = self._runner.explained_pass(chunks)
                targets = _add_tokens(work, explained.logits)
                explained.start(targets)
                _emit_tokens(requests)
                _add_time(requests, "decode", began)
                yield  # tokens are delivered before their scores are computed
                began = time.perf_counter()
                explaining = [request for request, chunk in work if chunk.explain is not None]
                _add_attributions(explaining, explained.heat_maps(targets))
                _add_time(explaining, "attribution", began)
        yield

    def _replay(self, requests: Sequence[Request]) -> Iterator[None]:
        """Score tokens that wait for their scores, by reading them again."""
        began = time.perf_counter()
        with self._run_pass(requests):
            self._announce(requests)
            replays = [(request, *request.replay_chunks()) for request in requests]
            work = [(request, chunk) for request, chunks, _ in replays for chunk in chunks]
            targets = [target for *_, request_targets in replays for target in request_targets]
            heat_maps = self._runner.replay([chunk for _, chunk in work], targets)
            _add_attributions([request for request, _ in work], heat_maps)
            _add_time(requests, "attribution", began)
        yield

    def _limit_batch(self, requests: Sequence[Request]) -> Sequence[Request]:
        """As many requests as fit a pass, if memory has run out before; the rest take the next pass."""
        if self._batch_limit.fits(requests):
            return requests
        chosen = requests[: self._batch_limit.max_requests]
        self._round_robin(chosen)
        return chosen

    def _run_pass(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        return self._batch_limit.guard(requests, self.max_running)

    def _announce(self, requests: Sequence[Request]) -> None:
        if self.before_pass is not None:
            self.before_pass(requests)

    def _round_robin(self, served: Sequence[Request]) -> None:
        """Move requests that had their turn to the end of the queue."""
        self.running = [request for request in self.running if request not in served] + list(served)


def _is_urgent(request: Request) -> bool:
    """Whether a client waits for its next event: any request but an evaluation."""
    return request.pass_budget is None and request.phase not in (RequestPhase.FINISHED, RequestPhase.IDLE)


def _with_one_followed(requests: Sequence[Request]) -> list[Request]:
    """The requests without followed ones, but for the first, in their order."""
    first = next((request for request in requests if request.is_followed), None)
    return [request for request in requests if not request.is_followed or request is first]


def _add_tokens(work: Sequence[tuple[Request, SequenceChunk]], logits: Tensor) -> list[Target | None]:
    """Add the next tokens to each request, from its rows of logits; returns the target of each row."""
    targets: list[Target | None] = []
    distributions = iter(Distribution.of(logits))
    for request, chunk in work:
        chosen: Sequence[Target | None] = [None] * len(chunk.ids)  # a request that fails has no targets
        with fail_on_error([request]):
            chosen = request.add_tokens(list(islice(distributions, len(chunk.ids))))
        targets += chosen
    return targets


def _emit_tokens(requests: Sequence[Request]) -> None:
    """Emit the tokens that requests have been given."""
    for request in requests:
        if not request.is_closed:
            with fail_on_error([request]):
                request.emit_tokens()


def _add_attributions(requests: Sequence[Request], heat_maps: Sequence[Tensor]) -> None:
    for request, heat_map in zip(requests, heat_maps, strict=True):
        if not request.is_closed:  # it may have failed or been cancelled during the pass
            with fail_on_error([request]):
                request.add_attributions(heat_map)


def _add_time(requests: Sequence[Request], bucket: TimingBucket, began: float) -> None:
    """Add a finished pass's duration to its requests, and close those that are done."""
    for request in requests:
        request.add_time(bucket, time.perf_counter() - began)
        request.close_if_done()
