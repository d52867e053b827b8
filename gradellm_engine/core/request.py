"""One request, from its prompt to its last token, as a stream of events.

    1. prefill   the prompt but its last token is read into a slot, in parts
    2. step      the last token is read, explained or not; the next one is chosen, or taken from those given
    3. explain   at once (delivery per_token), or later for a chunk of tokens that are read once more (chunked)
    4. tell      text and place of the token, then its scores; tokens that could begin a stop text wait
    5. go on with 2 until the model ends its turn, a stop text is met, or all tokens are there

Where a sequence becomes so long that its rotary factors are others (`gradellm_engine.layers.rotary_switch`), tokens
that wait for their scores are explained, and then all tokens but the last are read again, as a prompt is.

A stream never runs the model itself. It says what it wants read next, as a part of a pass, and takes what came of it:
`gradellm_engine.core.scheduler` puts the parts of many streams into one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor

from gradellm_engine.core.outputs import (
    Alternative,
    Attribution,
    Event,
    Finished,
    FinishReason,
    Progress,
    PromptProgress,
    Started,
    Step,
)
from gradellm_engine.core.sampler import Distribution, choose_token
from gradellm_engine.errors import ComputationError
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.results import EvaluationEvent
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.methods.post_hoc import CompletionContext, StepScores
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.params import (
    AttributionSettings,
    Delivery,
    GradEllm,
    LayerSwitches,
    NormaliseOver,
    Sampling,
    Switches,
)
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.tokenization.detokenizer import CompletionText
from gradellm_engine.tokenization.prompt import Prompt, Role
from gradellm_engine.tokenization.sources import SourceMap
from gradellm_engine.tokenization.words import WordCounter

if TYPE_CHECKING:
    from gradellm_engine.core.lockstep import RequestCall


@dataclass(frozen=True)
class ContrastText:
    """A contrast that was given as text and is one token as it stands and another after a space.

    Attributes:
        plain: the token without a space.
        spaced: the token that begins with one.
    """

    plain: int
    spaced: int

    def instead_of(self, text: str) -> int:
        """The one that could stand in place of a token with this text."""
        return self.spaced if text[:1].isspace() else self.plain


@dataclass(frozen=True)
class RequestSpec:
    """A request whose every setting is resolved and checked against the model.

    Attributes:
        prompt: its tokens.
        sampling: `seed` and `max_new_tokens` are set.
        attribution: None for tokens alone.
        contrast_id: the contrast, where it is a token that was given, or a text.
        forced_ids: tokens that the completion begins with.
        first_step: the first token of the completion that is computed; those before are only read.
        is_completion: whether the given tokens are a completion to explain, rather than a stream to resume.
        analyse: explains or evaluates the whole completion once all its tokens are there; None for methods within a
            pass.
        scores: scores of a step's prefix, of a method that needs no model: step, tokens -> scores.
        evaluation: what `analyse` evaluates; None where it explains.
        pass_budget: how much one pass of an evaluation may take.
        tenant: whose request it is; only its own requests reuse what it read.
    """

    prompt: Prompt
    sampling: Sampling
    attribution: AttributionSettings | None
    contrast_id: int | ContrastText | None
    forced_ids: tuple[int, ...]
    first_step: int
    is_completion: bool
    analyse: Callable[[CompletionContext], Iterator[StepScores | EvaluationEvent]] | None = None
    scores: Callable[[int, int], Tensor] | None = None
    evaluation: EvaluationSettings | None = None
    pass_budget: PassBudget | None = None
    tenant: str | None = None

    @property
    def is_within_pass(self) -> bool:
        """Whether tokens are explained in passes of their own."""
        return self.attribution is not None and self.analyse is None and self.scores is None


@dataclass(frozen=True)
class _Row:
    """Scores of a token that is not told yet.

    Attributes:
        scores: one a token of its prefix, on the CPU. [S]
        target: what they explain.
        error: the method's own measure of how far off they are.
    """

    scores: Tensor
    target: Target
    error: float | None


DEFAULT_CHUNK_SIZE = 16
TOLD_SHARE = 0.01  # of a prompt that is read before its progress is told once more

TimingBucket = Literal["queue", "prefill", "decode", "attribution"]  # what time was spent on


class RequestPhase(Enum):
    """What a stream needs next."""

    WAITING = auto()  # a slot
    PREFILL = auto()  # its prompt to be read
    DECODE = auto()  # its next token
    EXPLAIN = auto()  # a chunk of tokens to be explained before it may go on
    POST_HOC = auto()  # its whole completion to be explained after the fact
    FINISHED = auto()  # nothing


class Request:
    """One request's state.

    Attributes:
        max_num_tokens: tokens that its slot must hold at most.
        tenant: whose request it is.
        slot: where its keys and values are, while it runs.
        has_run: whether it ever had a slot.
        chunk_size: tokens that are explained together, of a given completion and with delivery chunked.
        asked: how it came about; None where nobody need make it again.
    """

    asked: RequestCall | None = None

    def __init__(self, model: LoadedModel, plan: RequestSpec) -> None:
        prompt, sampling, attribution = plan.prompt, plan.sampling, plan.attribution
        if sampling.seed is None or sampling.max_new_tokens is None:
            raise ValueError("a plan says its seed and its length")
        self._model, self._plan = model, plan
        self._seed, self._num_tokens = sampling.seed, sampling.max_new_tokens
        self.ids = prompt.ids + list(plan.forced_ids[: plan.first_step])  # every token known so far
        self.max_num_tokens = len(prompt.tokens) + self._num_tokens
        self.tenant = plan.tenant
        self.slot: KVSlot | None = None
        self.has_run = False
        self._num_reused = 0
        settings = attribution or AttributionSettings()
        self._explain: ExplainSpec | None = None
        if attribution is not None and plan.is_within_pass:
            self._explain = ExplainSpec(
                cast("LayerSwitches", attribution.method), normalisation_mask(prompt, attribution.method)
            )
        self._is_chunked = self._explain is not None and settings.delivery is Delivery.CHUNKED
        self._targets: list[Target] = []  # of an analysis
        self._work: Iterator[StepScores | EvaluationEvent] | None = None
        self._is_analysed = plan.analyse is None
        self._adapts_chunk_size = settings.chunk_size is None
        self.chunk_size = settings.chunk_size or DEFAULT_CHUNK_SIZE
        self._source_map = SourceMap(prompt, settings)
        self._special_ids = model.encoder.special_ids
        stop = () if plan.is_completion else sampling.stop
        self._text = CompletionText(self._decode, prompt.ids, stop, self._written_out)
        self._untold: list[Step] = []  # chosen, but their text may still begin a stop text
        self._words = WordCounter()
        self._num_read = 0  # tokens of the completion whose text was sure, and counted
        self._columns: list[int | None] = []  # of the first tokens
        self._rows: dict[int, _Row] = {}  # computed, of tokens that are not told yet
        self._unexplained: list[tuple[int, Target]] = []  # tokens that wait for a replay, by place in the completion
        self._seconds: dict[TimingBucket, float] = dict.fromkeys(get_args(TimingBucket), 0.0)
        self._num_attributed = 0
        self._progress = 0.0  # of an analysis, 0 to 1
        self._told_read = 0.0  # of the prompt, 0 to 1
        self._reason: FinishReason | None = None
        self.events: list[Event] = [Started(prompt, self._source_map.sources, sampling, attribution, plan.evaluation)]
        self.error: Exception | None = None
        self.is_closed = False
        for token_id in plan.forced_ids[: plan.first_step]:
            self._text.push(token_id)
        if plan.first_step:
            self._end_if_due(plan.forced_ids[plan.first_step - 1])
            self.finish_if_done()

    def adapt_chunk_size(self, chunk_size: int) -> None:
        """Take what suits the engine's load, unless the request says it."""
        if self._adapts_chunk_size:
            self.chunk_size = chunk_size

    def start(self, slot: KVSlot) -> None:
        """Run in `slot`, which may hold a beginning of the prompt already."""
        self.slot = slot
        self.has_run = True
        self._num_reused = slot.length

    @property
    def prompt(self) -> Prompt:
        """Its prompt."""
        return self._plan.prompt

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """Tokens that its completion begins with."""
        return self._plan.forced_ids

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen, with its seed and its length said."""
        return self._plan.sampling

    @property
    def pass_budget(self) -> PassBudget | None:
        """How much one of its passes may take, where it is an evaluation: that gives way to all others."""
        return self._plan.pass_budget

    @property
    def phase(self) -> RequestPhase:
        """What it needs next."""
        if self.is_closed:
            return RequestPhase.FINISHED
        if self.slot is None:
            return RequestPhase.WAITING
        if self.slot.length < len(self.ids) - 1:
            return RequestPhase.PREFILL
        if self._reason is not None and not self._is_analysed:
            return RequestPhase.POST_HOC
        if self._outgrows_slot:
            return RequestPhase.EXPLAIN if self._unexplained else RequestPhase.PREFILL
        if self._num_given_left or len(self._unexplained) >= self.chunk_size or self._reason is not None:
            return RequestPhase.EXPLAIN
        if self._unexplained and not self._is_chunked:
            return RequestPhase.EXPLAIN  # memory ran out in the pass that was to explain it
        return RequestPhase.DECODE

    @property
    def is_long(self) -> bool:
        """Whether its next token is read with the long rotary factors."""
        return self._model.runner.is_long(len(self.ids))

    @property
    def _outgrows_slot(self) -> bool:
        """Whether its next token needs other rotary factors than its keys were made with."""
        return self._reason is None and self.slot is not None and self.is_long != self.slot.is_long

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, the prompt's among them."""
        return len(self.ids)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens that its slot holds."""
        return 0 if self.slot is None else self.slot.length

    @property
    def num_prefill_left(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(0, len(self.ids) - 1 - self.num_computed_tokens)

    @property
    def post_hoc_seconds_left(self) -> float:
        """About how long the rest of an analysis takes, by how long its beginning took; 0 before it has begun."""
        done = self._progress
        return self._seconds["attribution"] * (1 - done) / done if 0 < done < 1 else 0.0

    def roll_back(self, num_tokens: int, num_computed_tokens: int) -> None:
        """A pass failed: the slot holds what it held before, unless the stream has gone on by what the pass gave."""
        if self.slot is not None and len(self.ids) == num_tokens:
            del self.slot.ids[num_computed_tokens:]

    @property
    def num_unexplained(self) -> int:
        """Tokens that wait for their scores."""
        return len(self._unexplained)

    @property
    def chunk_length(self) -> int:
        """Tokens that are explained together the next time."""
        return min(self.chunk_size, len(self._unexplained) or self._num_given_left)

    @property
    def _num_completion_tokens(self) -> int:
        return len(self.ids) - len(self._plan.prompt.tokens)

    @property
    def _num_given_left(self) -> int:
        return max(0, len(self._plan.forced_ids) - self._num_completion_tokens)

    # What it wants read --------------------------------------------------------------------------------------------

    def prefill_chunk(self, max_tokens: int) -> SequenceChunk:
        """The next tokens of the prompt, or of all that there is where keys are made anew."""
        slot = self._open_slot()
        if self._outgrows_slot:
            self.slot = slot = slot.reallocate_long(self.ids[:-1])
        return SequenceChunk.new(slot, self.ids[slot.length : min(len(self.ids) - 1, slot.length + max_tokens)])

    def decode_chunk(self) -> SequenceChunk:
        """The last token, to find the next one."""
        slot, last = self._open_slot(), self.ids[-1:]
        if self._is_chunked:
            return SequenceChunk.new(slot, last, replay_length=self.chunk_size)
        return SequenceChunk.new(slot, last, self._explain)

    def replay_chunk(self) -> tuple[SequenceChunk, list[Target]]:
        """Tokens to be read once more, and what is explained of each."""
        chunk = self._unexplained[: self.chunk_size]
        start = len(self._plan.prompt.tokens) + chunk[0][0] - 1  # of the token that the first one was read off
        part = SequenceChunk.replay(self._open_slot(), start, start + len(chunk), self._chosen_explain())
        return part, [target for _, target in chunk]

    def forced_chunk(self) -> SequenceChunk:
        """The last token, and tokens of the given completion after it, to be explained together."""
        done, count = self._num_completion_tokens, self.chunk_size
        switch = self._model.runner.switch_tokens
        if switch is not None and not self.is_long:
            count = min(count, switch + 1 - len(self.ids))  # those after it have other rotary factors
        given = self._plan.forced_ids[done : done + count]
        return SequenceChunk.new(self._open_slot(), [self.ids[-1], *given[:-1]], self._explain)

    def _chosen_explain(self) -> ExplainSpec:
        if self._explain is None:
            raise ValueError("a stream without attribution explains nothing")
        return self._explain

    def _open_slot(self) -> KVSlot:
        if self.slot is None:
            raise ValueError("a stream without a slot reads nothing")
        return self.slot

    # What came of it -----------------------------------------------------------------------------------------------

    def emit_prompt_progress(self) -> None:
        """A piece of the prompt has been read: tell how far it is, unless that was the last piece."""
        done = self.num_computed_tokens / (len(self.ids) - 1)
        if self.phase is RequestPhase.PREFILL and done >= self._told_read + TOLD_SHARE:
            self._told_read = done
            self.events.append(PromptProgress(done))

    def add_tokens(self, distributions: Sequence[Distribution]) -> list[Target]:
        """Go on by a token for each; what is to be explained of each. `tell` tells them.

        Raises:
            ComputationError: where one is not finite.
        """
        targets = []
        for distribution in distributions:
            index = self._num_completion_tokens
            distribution.check(index)
            given = index < len(self._plan.forced_ids)
            token_id = (
                self._plan.forced_ids[index]
                if given
                else choose_token(distribution, self._plan.sampling, self._seed, index)
            )
            self._append(token_id, distribution, is_new=self._plan.is_completion or not given)
            target = self._target(token_id, distribution)
            targets.append(target)
            if self._explain is not None:
                self._unexplained.append((index, target))
            elif self._plan.analyse is not None:
                self._targets.append(target)
            elif self._plan.scores is not None:
                self._take_row(index, target, self._plan.scores(index, len(self.ids) - 1))
            self._end_if_due(token_id)
        return targets

    def emit_tokens(self) -> None:
        """Tell the tokens whose text is sure, and the scores of tokens that have been told.

        Where words are columns, a part of a character waits for the rest: its column is the character's.
        """
        first = self._num_completion_tokens - len(self._untold)
        self._add_columns()
        count = max(0, len(self._columns) - first)
        for step in self._untold[:count]:
            start, end = self._text.spans[step.index]
            self.events.append(
                replace(
                    step,
                    text=self._text.text[start:end],
                    start=start,
                    end=end,
                    word=self._words.words[step.index] if start < end or step.special else None,
                    source_index=self._columns[step.index],
                )
            )
        del self._untold[:count]
        for index in sorted(index for index in self._rows if index < first + count):
            self.events.append(self._attribution(index, self._rows.pop(index)))

    def _add_columns(self) -> None:
        """Count the tokens whose text is sure to words, and make them sources of the later ones."""
        num_prompt_tokens = len(self._plan.prompt.tokens)
        for index in range(self._num_read, self._text.num_safe_tokens):
            start, end = self._text.spans[index]
            is_special = self.ids[num_prompt_tokens + index] in self._special_ids
            self._words.push(self._text.text[start:end], special=is_special)
            self._num_read += 1
        if self._reason is not None:
            self._words.finish()
        words = self._words.words
        num_known = len(words) if self._source_map.takes_words else self._num_read
        for index in range(len(self._columns), num_known):
            self._columns.append(self._source_map.add_generated(words[index] if index < len(words) else None))

    def add_attributions(self, heat_map: Tensor) -> None:
        """Take the scores of the first tokens that wait for theirs: one score a token of the prefix. [T, S]

        Raises:
            ComputationError: where a score is not finite.
        """
        explained = self._unexplained[: len(heat_map)]
        del self._unexplained[: len(heat_map)]
        _check_finite(heat_map, [index for index, _ in explained])
        num_prompt_tokens = len(self._plan.prompt.tokens)
        for (index, target), row in zip(explained, heat_map, strict=True):
            self._take_row(index, target, row[: num_prompt_tokens + index])
        self.emit_tokens()

    def analyse(self) -> None:
        """Go on with explaining or evaluating the whole completion, by a pass or two.

        Raises:
            ComputationError: where a score is not finite.
        """
        if self._plan.analyse is None:
            raise ValueError("a stream whose tokens are explained one by one has no analysis")
        if self._work is None:
            given = CompletionContext(self.ids, len(self._plan.prompt.tokens), self._targets, self.slot)
            self._work = self._plan.analyse(given)
        for result in self._work:
            if isinstance(result, float):
                self.events.append(Progress(result))
                self._progress = result
                return
            if not isinstance(result, StepScores):
                self.events.append(result)
                continue
            _check_finite(result.scores[None], [result.step])
            self._take_row(result.step, self._targets[result.step], result.scores, result.error)
            self.emit_tokens()
        self._work, self._is_analysed = None, True

    def _take_row(self, index: int, target: Target, scores: Tensor, error: float | None = None) -> None:
        """Scores of the token's whole prefix [S]."""
        self._rows[index] = _Row(scores.cpu(), target, error)
        self._num_attributed += 1

    def add_time(self, bucket: TimingBucket, seconds: float) -> None:
        """Note time that it spent, in the whole of a pass that it took part in."""
        self._seconds[bucket] += seconds

    def finish_if_done(self) -> None:
        """End it where its last token is chosen and explained; told once the pass that did it has been charged."""
        if self._reason is None or self._unexplained or not self._is_analysed or self.is_closed:
            return
        self.events.append(
            Finished(
                reason=self._reason,
                stop=self._text.stop,
                text=self._text.text,
                num_prompt_tokens=len(self._plan.prompt.tokens),
                num_completion_tokens=self._num_completion_tokens,
                num_attributed_tokens=self._num_attributed,
                num_reused_tokens=self._num_reused,
                queue_seconds=self._seconds["queue"],
                prefill_seconds=self._seconds["prefill"],
                decode_seconds=self._seconds["decode"],
                attribution_seconds=self._seconds["attribution"],
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
        """End it as it is, and free what it holds."""
        self.is_closed = True
        self._work = None
        if self.slot is not None:
            self.slot.close()
            self.slot = None

    def take_events(self) -> list[Event]:
        """What there is to tell since the last time."""
        events, self.events = self.events, []
        return events

    def _append(self, token_id: int, distribution: Distribution, *, is_new: bool) -> None:
        index = self._num_completion_tokens
        self.ids.append(token_id)
        self._text.push(token_id)
        alternatives = tuple(
            Alternative(token.id, self._decode_alone(token.id), token.logprob)
            for token in distribution.top(self._plan.sampling.num_alternatives)
        )
        step = Step(
            index=index,
            id=token_id,
            text="",  # told when it is sure
            start=0,
            end=0,
            logprob=distribution.logprob(token_id),
            alternatives=alternatives,
            special=token_id in self._special_ids,
            word=None,
            source_index=None,
            attribution=None,
            is_new=is_new,
        )
        self._untold.append(step)

    def _target(self, token_id: int, distribution: Distribution) -> Target:
        attribution = self._plan.attribution
        if attribution is None:
            return Target(token_id)
        target_id = token_id if attribution.target_token_id is None else attribution.target_token_id
        if attribution.contrast is not None and attribution.contrast.runner_up:
            return Target(target_id, distribution.runner_up(target_id))
        contrast = self._plan.contrast_id
        if isinstance(contrast, ContrastText):
            contrast = contrast.instead_of(self._decode_alone(target_id))
        return Target(target_id, contrast)

    def _attribution(self, index: int, row: _Row) -> Attribution:
        """A token's scores as they are told, once the columns of all tokens before it are known."""
        scores, target = self._source_map.aggregate(row.scores), row.target
        count = self._plan.attribution.top_k_sources if self._plan.attribution else None
        if count is None or count >= len(scores):
            return Attribution(index, scores, None, target.token_id, target.contrast_id, row.error)
        largest = scores.abs().topk(count).indices
        return Attribution(index, scores[largest], largest, target.token_id, target.contrast_id, row.error)

    def _end_if_due(self, token_id: int) -> None:
        done, num_given = self._num_completion_tokens, len(self._plan.forced_ids)
        if self._plan.is_completion:
            if done == num_given:
                self._reason = FinishReason.END_OF_COMPLETION
        elif done < num_given:
            return  # what is given goes on
        elif self._text.stop is not None:
            self._reason = FinishReason.STOP_TEXT
        elif token_id in self._model.end_ids:
            self._reason = FinishReason.END_OF_TEXT
        elif done == self._num_tokens:
            self._reason = FinishReason.MAX_NEW_TOKENS
        if self._reason is not None:
            self._text.finish()
            if self._text.stop is not None:
                self._reason = FinishReason.STOP_TEXT

    def _decode(self, ids: Sequence[int]) -> str:
        return self._model.encoder.decode(ids, skip_special_tokens=True)

    def _written_out(self, token_id: int) -> str:
        """How a special token reads in a stop text; empty for tokens that have a text of their own."""
        if token_id not in self._special_ids or self._decode([token_id]):
            return ""
        return self._decode_alone(token_id)

    def _decode_alone(self, token_id: int) -> str:
        return self._model.encoder.decode_alone(token_id)


def _check_finite(rows: Tensor, indexes: Sequence[int]) -> None:
    """See that the scores of some tokens are numbers. [T, S]"""
    if not rows.isfinite().all():
        index = indexes[int(rows.isfinite().all(-1).logical_not().int().argmax())]
        raise ComputationError(f"the attribution of token {index} is not finite: the model's numbers overflow")


def normalisation_mask(prompt: Prompt, method: Switches) -> Tensor | None:
    """The prompt tokens over which a method normalises similarities; None for all that a layer sees. [m], bool"""
    match method.normalise_over if isinstance(method, GradEllm) else NormaliseOver.VISIBLE:
        case NormaliseOver.VISIBLE:
            return None
        case NormaliseOver.PROMPT:
            return torch.ones(len(prompt.tokens), dtype=torch.bool)
        case NormaliseOver.USER:
            return torch.tensor([token.role is Role.USER for token in prompt.tokens])
