"""One request, from its prompt to its last token, as a state machine that the scheduler drives.

    1. prefill   all tokens of the prompt but the last are read into a KV slot, in chunks
    2. decode    the last token is read, explained or not; the next one is sampled. Given tokens are read in chunks;
                 those that another engine writes come one by one, and until there are enough the request is idle
    3. explain   in the same pass (delivery per_token), or later for several tokens that are replayed (chunked); a
                 token that the request does not select is not explained
    4. emit      the token with its text, then its scores; see `gradellm_engine.core.output_processor`
    5. repeat from 2 until the model ends its turn, a stop text is met, or all tokens are there
    6. post-hoc  methods over whole completions, and evaluations, a pass or two at a time

Where a sequence becomes so long that its rotary factors change (`gradellm_engine.layers.rotary_switch`), tokens that
wait for their scores are explained first, and then all tokens but the last are prefilled again.

A request never runs the model. It gives the scheduler (`gradellm_engine.core.scheduler`) the chunk of its sequence to
read next, and takes the results of the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Literal, get_args

from torch import Tensor

from gradellm_engine.core.following.given_tokens import GivenTokens
from gradellm_engine.core.output_processor import OutputProcessor
from gradellm_engine.core.outputs import Event, Finished, FinishReason, Progress, PromptProgress, Started
from gradellm_engine.core.request_spec import RequestCall, RequestSpec, TargetChooser
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.core.sampling.token_sampler import TokenSampler
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.results import EvaluationEvent
from gradellm_engine.kv_cache.pool import MIN_REUSED_TOKENS, KVPool, KVSlot
from gradellm_engine.methods.post_hoc import CompletionContext, StepScores
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.passes.base import SequenceChunk, Target
from gradellm_engine.passes.replay_queue import ReplayQueue
from gradellm_engine.tokenization.prompt import Prompt

DEFAULT_CHUNK_SIZE = 16
PROMPT_PROGRESS_SHARE = 0.01  # of a prompt that is read between two progress events

TimingBucket = Literal["queue", "prefill", "decode", "attribution"]


class RequestPhase(Enum):
    """What a request needs next."""

    WAITING = auto()  # a KV slot
    IDLE = auto()  # more tokens of a followed completion
    PREFILL = auto()  # its prompt to be read
    DECODE = auto()  # its next token
    EXPLAIN = auto()  # scores of some tokens, before the next token
    POST_HOC = auto()  # its whole completion to be explained or evaluated
    FINISHED = auto()  # nothing


class Request:
    """One request's state.

    Attributes:
        call: how it was built; another rank builds the same request from it.
        ids: all tokens so far, the prompt's first.
        max_num_tokens: the prompt's tokens, and as many new ones as it may have.
        num_slot_tokens: tokens that its KV slot must hold when it starts.
        tenant: whose prefixes it may reuse.
        slot: its keys and values, while it runs.
        has_run: whether it ever had a slot.
        chunk_size: tokens that are explained together, of a given completion or with delivery chunked.
        max_forced_chunk: the most given tokens that one pass reads.
        error: what ended it, if it failed.
        is_closed: whether it has ended, in whatever way.
        is_followed: whether another engine writes its completion; see `FollowedRequest`.
        num_passed_over: see `gradellm_engine.core.scheduling.pass_timings`.
    """

    is_followed = False

    def __init__(self, model: LoadedModel, spec: RequestSpec) -> None:
        prompt = spec.prompt
        self._model, self._spec = model, spec
        self._sampler = TokenSampler(spec, model.end_ids)
        self.call: RequestCall | None = spec.call
        self._given = GivenTokens(spec.forced_ids, spec.following, num_read=spec.first_step)
        self.ids = prompt.ids + self._given.ids[: spec.first_step]
        self._num_prompt_tokens = len(prompt.tokens)
        self.max_num_tokens = self._num_prompt_tokens + self._sampler.max_new_tokens
        self.num_slot_tokens = self.max_num_tokens
        self.tenant = spec.tenant
        self.slot: KVSlot | None = None
        self.has_run = False
        self.num_passed_over = 0
        self._num_reused = 0  # tokens of the prompt that the slot held at the start
        settings = spec.attribution or AttributionSettings()
        self._explain = spec.explain_in_pass
        self._is_chunked = self._explain is not None and settings.delivery is Delivery.CHUNKED
        self._adapts_chunk_size = settings.chunk_size is None
        self.max_forced_chunk = self.chunk_size = settings.chunk_size or DEFAULT_CHUNK_SIZE
        self._replays = ReplayQueue(self._num_prompt_tokens)
        self._targets: dict[int, Target] = {}  # of a post-hoc method, by token
        self._post_hoc: Iterator[StepScores | EvaluationEvent] | None = None
        self._is_post_hoc_done = spec.post_hoc is None
        self._post_hoc_progress = 0.0  # 0 to 1
        self._prompt_progress = 0.0  # as last emitted, 0 to 1
        self._seconds: dict[TimingBucket, float] = dict.fromkeys(get_args(TimingBucket), 0.0)
        self._finish_reason: FinishReason | None = None
        self._output = OutputProcessor(model.encoder, spec)
        self._choose_target = TargetChooser(model.encoder, spec)
        settings_in_use = (spec.sampling, spec.attribution, spec.evaluation, spec.structured_output)
        self.events: list[Event] = [Started(prompt, self._output.sources, *settings_in_use)]
        self.error: Exception | None = None
        self.is_closed = False
        for index, token_id in enumerate(self._given.ids[: spec.first_step]):
            self._output.skip_token(token_id, has_text=self._sampler.has_text(index, token_id))
        if spec.first_step:
            self._finish_if_ended(self.ids[-1])
            self.close_if_done()

    # State --------------------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Prompt:
        """Its prompt's tokens."""
        return self._spec.prompt

    @property
    def pass_budget(self) -> PassBudget | None:
        """The size of its passes, for an evaluation, which runs at low priority; None for all other requests."""
        return self._spec.pass_budget

    @property
    def phase(self) -> RequestPhase:
        """What it needs next."""
        if self.is_closed:
            return RequestPhase.FINISHED
        if self.slot is None:
            return RequestPhase.WAITING
        if self.slot.length < len(self.ids) - 1:
            return RequestPhase.PREFILL
        return self._phase_after_prefill

    @property
    def _phase_after_prefill(self) -> RequestPhase:
        """What it needs once its slot holds all tokens but the last."""
        if self._finish_reason is not None and not self._is_post_hoc_done:
            return RequestPhase.POST_HOC
        if self._needs_rotary_switch:
            return RequestPhase.EXPLAIN if self._replays else RequestPhase.PREFILL
        is_due = self._given.is_due(self._num_completion_tokens, self.chunk_size)
        if is_due or self._finish_reason is not None or self.must_replay:
            return RequestPhase.EXPLAIN
        return RequestPhase.IDLE if self._num_forced_left or self._given.is_open else RequestPhase.DECODE

    @property
    def is_long(self) -> bool:
        """Whether its next token is read with the long rotary factors."""
        return self._model.runner.is_long(len(self.ids))

    @property
    def _needs_rotary_switch(self) -> bool:
        """Whether its next token needs other rotary factors than the keys in its slot have."""
        return self._finish_reason is None and self.slot is not None and self.is_long != self.slot.is_long

    @property
    def num_tokens(self) -> int:
        """Tokens so far, the prompt's among them."""
        return len(self.ids)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values its slot holds."""
        return 0 if self.slot is None else self.slot.length

    @property
    def num_prefill_left(self) -> int:
        """Tokens that are still to be prefilled."""
        return max(0, len(self.ids) - 1 - self.num_computed_tokens)

    @property
    def must_replay(self) -> bool:
        """Whether its next explain pass replays tokens, rather than reading forced ones."""
        if not self._replays:
            return False
        if self._num_forced_left and not self._needs_rotary_switch:
            return len(self._replays) >= self.chunk_size
        if not self._is_chunked or self._finish_reason is not None or self._needs_rotary_switch:
            return True  # with delivery per_token, the token's pass held prompts, or memory ran out in it
        return self._num_completion_tokens - self._replays.oldest >= self.chunk_size

    @property
    def chunk_length(self) -> int:
        """Tokens that the next explain pass takes."""
        if self.must_replay:
            return min(self.chunk_size, len(self._replays))
        return min(self.max_forced_chunk, self._num_forced_left)

    @property
    def post_hoc_seconds_left(self) -> float:
        """An estimate of the rest of its post-hoc work, from the time of the work done; 0 before any is done."""
        done = self._post_hoc_progress
        return self._seconds["attribution"] * (1 - done) / done if 0 < done < 1 else 0.0

    @property
    def _num_completion_tokens(self) -> int:
        return len(self.ids) - self._num_prompt_tokens

    @property
    def _num_forced_left(self) -> int:
        return max(0, len(self._given.ids) - self._num_completion_tokens)

    # What the scheduler does to it --------------------------------------------------------------------------------

    def start(self, slot: KVSlot) -> None:
        """Run in `slot`, which may already hold a prefix of the prompt."""
        self.slot = slot
        self.has_run = True
        self._num_reused = slot.length

    def adapt_chunk_size(self, chunk_size: int, max_followed: int) -> None:
        """Use the scheduler's chunk size, unless the request sets its own; `max_followed` is for `FollowedRequest`."""
        if self._adapts_chunk_size:
            self.chunk_size = chunk_size
        self.max_forced_chunk = self.chunk_size

    def roll_back(self, num_tokens: int, num_computed_tokens: int) -> None:
        """Undo a failed pass: the slot holds what it held before, unless a token has been added since."""
        if self.slot is not None and len(self.ids) == num_tokens:
            del self.slot.ids[num_computed_tokens:]

    def add_time(self, bucket: TimingBucket, seconds: float) -> None:
        """Add the whole duration of a pass that it took part in, or of its wait."""
        self._seconds[bucket] += seconds

    def close_if_done(self) -> None:
        """End it once its last token is sampled and explained.

        The scheduler calls this after `add_time`, so that `Finished` counts the last pass.
        """
        if self._finish_reason is None or self._replays or not self._is_post_hoc_done or self.is_closed:
            return
        self.events.append(
            Finished(
                reason=self._finish_reason,
                stop=self._output.stop,
                text=self._output.text,
                num_prompt_tokens=self._num_prompt_tokens,
                num_completion_tokens=self._num_completion_tokens,
                num_attributed_tokens=self._output.num_attributed,
                num_reused_tokens=self._num_reused,
                **{f"{bucket}_seconds": seconds for bucket, seconds in self._seconds.items()},
                agreement=self._given.agreement,
                verdict=self._given.verdict,
            )
        )
        if self.slot is not None:
            self.slot.retain()
            self.slot = None
        self.is_closed = True

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.error = error
        self.close()

    def close(self) -> None:
        """End it as it is, and free its slot."""
        self.is_closed = True
        self._post_hoc = None
        if self.slot is not None:
            self.slot.close()
            self.slot = None

    def take_events(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    # Chunks to read -----------------------------------------------------------------------------------------------

    def extend_prefix(self, pool: KVPool) -> None:
        """Take what other sequences have computed of the prompt since this one has its slot."""
        if not self._needs_rotary_switch:
            self._num_reused += pool.extend(self._open_slot(), self.ids)

    def waits_for(self, other: Request) -> bool:
        """Whether another request, as far or further, reads the prompt's next tokens, which can then be copied."""
        own, others = self._open_slot(), other._open_slot()
        first, end = own.length, own.length + MIN_REUSED_TOKENS
        if own.namespace != others.namespace or self._needs_rotary_switch or other._needs_rotary_switch:
            return False
        if others.length < first or min(len(self.ids), len(other.ids)) <= end:
            return False
        # The new tokens first: they are few, and mostly differ.
        return self.ids[first:end] == other.ids[first:end] and self.ids[:first] == other.ids[:first]

    def prefill_chunk(self, max_tokens: int) -> SequenceChunk:
        """The next tokens of the prompt, or of the whole sequence where its keys need other rotary factors."""
        slot = self._open_slot()
        if self._needs_rotary_switch:
            self.slot = slot = slot.reallocate_long(self.ids[:-1])
        return SequenceChunk.new(slot, self.ids[slot.length : min(len(self.ids) - 1, slot.length + max_tokens)])

    def decodes_after(self, chunk: SequenceChunk) -> bool:
        """Whether the pass that prefills `chunk` can decode its last token, too."""
        return chunk.end == len(self.ids) - 1 and self._phase_after_prefill is RequestPhase.DECODE

    def decode_chunk(self, *, after: SequenceChunk | None = None, is_mixed: bool = False) -> SequenceChunk:
        """The last token, whose logits give the next one.

        Args:
            after: the end of its prompt, which the same pass prefills.
            is_mixed: whether the pass holds prompts; it then explains nothing, and the token is replayed after it.
        """
        slot, last = self._open_slot(), self.ids[-1:]
        explain = self._explain if self._spec.explains(self._num_completion_tokens) else None
        if explain is not None and (self._is_chunked or is_mixed):
            replay_length = self.chunk_size if self._is_chunked else 1
            return SequenceChunk.new(slot, last, after=after, replay_length=replay_length)
        return SequenceChunk.new(slot, last, explain, after=after)

    def replay_chunks(self) -> tuple[list[SequenceChunk], list[Target]]:
        """Tokens to be read again to explain them, and their targets."""
        if self._explain is None:
            raise ValueError("a request without in-pass attribution has nothing to replay")
        return self._replays.chunks(self._open_slot(), self._explain, min(self.chunk_size, len(self._replays)))

    def forced_chunk(self) -> SequenceChunk:
        """The last token and the next forced tokens; explained where all of their successors are, and none waits."""
        done, count = self._num_completion_tokens, self.max_forced_chunk
        switch = self._model.runner.switch_tokens
        if switch is not None and not self.is_long:
            count = min(count, switch + 1 - len(self.ids))  # later tokens have other rotary factors
        forced = self._given.ids[done : done + count]
        all_explained = not self._replays and all(map(self._spec.explains, range(done, done + len(forced))))
        explain = self._explain if all_explained else None
        return SequenceChunk.new(self._open_slot(), [self.ids[-1], *forced[:-1]], explain)

    def _open_slot(self) -> KVSlot:
        if self.slot is None:
            raise ValueError("a request without a slot cannot read tokens")
        return self.slot

    # Results of a pass --------------------------------------------------------------------------------------------

    def emit_prompt_progress(self) -> None:
        """After a prefill chunk that was not the last: emit how much of the prompt has been read."""
        done = self.num_computed_tokens / (len(self.ids) - 1)
        if self.phase is RequestPhase.PREFILL and done >= self._prompt_progress + PROMPT_PROGRESS_SHARE:
            self._prompt_progress = done
            self.events.append(PromptProgress(done))

    def add_tokens(self, distributions: Sequence[Distribution]) -> list[Target | None]:
        """Add a token for each distribution; returns targets of explained ones. `emit_tokens` emits the tokens.

        Raises:
            ComputationError: where the logits are not finite.
            InvalidRequestError: where the request's grammar cannot be followed any further.
        """
        spec = self._spec
        targets: list[Target | None] = []
        for distribution in distributions:
            index = self._num_completion_tokens
            distribution.check(index)
            is_given, by_grammar = index < len(self._given.ids), False
            if is_given:
                token_id = self._given.ids[index]
                self._given.compare(index, distribution)
            else:
                token_id, by_grammar = self._sampler.choose(distribution, self.ids)
            self.ids.append(token_id)
            has_text, is_new = self._sampler.has_text(index, token_id), spec.is_completion or not is_given
            self._output.add_token(
                token_id, distribution, is_new=is_new, has_text=has_text, forced_by_grammar=by_grammar
            )
            target = self._choose_target(token_id, distribution) if spec.explains(index) else None
            targets.append(target)
            if target is not None:
                self._await_scores(index, target)
            self._finish_if_ended(token_id)
        return targets

    def _await_scores(self, index: int, target: Target) -> None:
        """Note that a token is to be explained; a method without a model explains it at once."""
        spec = self._spec
        if self._explain is not None:
            self._replays.push(index, target)
        elif spec.post_hoc is not None:
            self._targets[index] = target
        elif spec.model_free_scores is not None:
            self._output.add_scores(index, target, spec.model_free_scores(index, len(self.ids) - 1))

    def emit_tokens(self) -> None:
        """Emit tokens whose text is final, and scores of tokens that have been emitted."""
        self.events += self._output.take_ready()

    def add_attributions(self, heat_map: Tensor) -> None:
        """Add and emit scores of the first tokens that wait for theirs: one score a token of the prefix. [T, S]

        Raises:
            ComputationError: where a score is not finite.
        """
        for (index, target), row in zip(self._replays.pop(len(heat_map)), heat_map, strict=True):
            self._output.add_scores(index, target, row[: self._num_prompt_tokens + index])
        self.emit_tokens()

    def run_post_hoc(self) -> None:
        """Continue explaining or evaluating the whole completion, by a pass or two.

        Raises:
            ComputationError: where a score is not finite.
        """
        if self._spec.post_hoc is None:
            raise ValueError("a request whose tokens are explained one by one has no post-hoc work")
        if self._post_hoc is None:
            targets, steps = list(self._targets.values()), list(self._targets)
            context = CompletionContext(self.ids, self._num_prompt_tokens, targets, self.slot, steps)
            self._post_hoc = self._spec.post_hoc(context)
        for result in self._post_hoc:
            if isinstance(result, float):
                self.events.append(Progress(result))
                self._post_hoc_progress = result
                return
            if not isinstance(result, StepScores):
                self.events.append(result)
                continue
            self._output.add_scores(result.step, self._targets[result.step], result.scores, result.error)
            self.emit_tokens()
        self._post_hoc, self._is_post_hoc_done = None, True

    def _finish_if_ended(self, token_id: int) -> None:
        """Set the finish reason where the completion ends with this token."""
        done, num_forced = self._num_completion_tokens, len(self._given.ids)
        if self._spec.is_completion:
            if done == num_forced and not self._given.is_open:
                self._finish_reason = FinishReason.END_OF_COMPLETION
        elif done < num_forced:
            return  # forced tokens end nothing before the last of them
        elif self._output.stop is not None:
            self._finish_reason = FinishReason.STOP_TEXT
        else:
            self._finish_reason = self._sampler.finish_reason(done - 1, token_id)
        if self._finish_reason is not None:
            self._output.finish()
            if self._output.stop is not None:
                self._finish_reason = FinishReason.STOP_TEXT
