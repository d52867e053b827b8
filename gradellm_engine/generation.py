"""One request, from its prompt to its last token, a unit of work at a time.

    1. prefill   the prompt but its last token is read in chunks, without gradients
    2. step      the last token is read (explained or not); the next one is chosen, or taken from those given
    3. explain   one backward pass; layers' contributions become one score a source
    4. say       text and place of the token; tokens that could begin a stop text wait
    5. go on with 2 until the model ends its turn, a stop text is met, or all tokens are there

`advance` does one prefill chunk or one step, so that whoever runs it can stop, or turn to another request, in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from gradellm_engine.decoder import ExplainedStep
from gradellm_engine.errors import ComputationError
from gradellm_engine.grad_ellm import heat_map
from gradellm_engine.kv_slot import KVSlot
from gradellm_engine.loading import LoadedModel
from gradellm_engine.prompts import Prompt, Role, decode, special_ids
from gradellm_engine.sampling import Distribution, choose_token
from gradellm_engine.settings import AttributionSettings, NormaliseOver, Rotary, Sampling
from gradellm_engine.sources import Source, SourceMap
from gradellm_engine.text import CompletionText

PREFILL_CHUNK = 256  # tokens of a prompt that are read at once: long enough for speed, short enough to stop in time


@dataclass(frozen=True)
class Alternative:
    """A token that could have come.

    Attributes:
        id: its id.
        text: its text on its own.
        logprob: natural logarithm of its probability under the model.
    """

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Attribution:
    """How much each source contributed to one token.

    Attributes:
        scores: raw scores, float32 or better, on the CPU. [C], or [top_k_sources]
        source_indexes: with top_k_sources, which sources, the largest score by magnitude first; None otherwise.
        target_token_id: the token whose logit was explained.
        contrast_token_id: the token whose logit was taken off, if one was.
    """

    scores: Tensor
    source_indexes: Tensor | None
    target_token_id: int
    contrast_token_id: int | None


@dataclass(frozen=True)
class Step:
    """A token of the completion.

    Attributes:
        index: its place in the completion.
        id: its id.
        text: the text that it adds.
        start: that text's first code point in the completion.
        end: one past its last.
        logprob: natural logarithm of its probability under the model, before temperature, top_k and top_p.
        alternatives: the most probable tokens, the best first.
        special: whether it is a special token.
        source_index: the column of later rows that stands for it, where the prefix is scored.
        attribution: None where it was not asked for.
        is_new: False for a token that the caller gave to resume from.
    """

    index: int
    id: int
    text: str
    start: int
    end: int
    logprob: float
    alternatives: tuple[Alternative, ...]
    special: bool
    source_index: int | None
    attribution: Attribution | None
    is_new: bool


class FinishReason(StrEnum):
    """Why a generation ended."""

    END_OF_TEXT = "end_of_text"
    STOP_TEXT = "stop_text"
    MAX_NEW_TOKENS = "max_new_tokens"
    END_OF_COMPLETION = "end_of_completion"


@dataclass(frozen=True)
class Finished:
    """What a generation came to.

    Attributes:
        reason: why it ended.
        stop: the stop text that was met.
        text: the completion.
        num_prompt_tokens: tokens read.
        num_completion_tokens: tokens of the completion, given ones included.
        num_attributed_tokens: tokens explained.
        prefill_seconds: spent on the prompt.
        decode_seconds: spent on steps, without attribution.
        attribution_seconds: spent on backward passes and heat maps.
    """

    reason: FinishReason
    stop: str | None
    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    num_attributed_tokens: int
    prefill_seconds: float
    decode_seconds: float
    attribution_seconds: float


@dataclass(frozen=True)
class Started:
    """How a request was understood.

    Attributes:
        prompt: its tokens.
        sources: the columns of scores over the prompt.
        sampling: with the seed and the length that are used.
        attribution: with every switch said; None where it was not asked for.
    """

    prompt: Prompt
    sources: tuple[Source, ...]
    sampling: Sampling
    attribution: AttributionSettings | None


@dataclass(frozen=True)
class Plan:
    """A request whose every setting is resolved and checked against the model.

    Attributes:
        prompt: its tokens.
        sampling: `seed` and `max_new_tokens` are set.
        attribution: None for tokens alone.
        contrast_id: the contrast, where it is a fixed token.
        given_ids: tokens that the completion begins with.
        first_step: the first token of the completion that is computed; those before are only read.
        is_completion: whether the given tokens are a completion to explain, rather than a stream to resume.
    """

    prompt: Prompt
    sampling: Sampling
    attribution: AttributionSettings | None
    contrast_id: int | None
    given_ids: tuple[int, ...]
    first_step: int
    is_completion: bool


class Generation:
    """Yields the steps of one request; `started` is there from the beginning, `finished` at the end.

    Leaving it early costs nothing: what it holds is freed with it, or by `close`.
    """

    def __init__(self, model: LoadedModel, plan: Plan) -> None:
        prompt, sampling, attribution = plan.prompt, plan.sampling, plan.attribution
        if sampling.seed is None or sampling.max_new_tokens is None:
            raise ValueError("a plan says its seed and its length")
        self._model, self._plan = model, plan
        self._seed, self._num_tokens = sampling.seed, sampling.max_new_tokens
        self._ids = prompt.ids + list(plan.given_ids[: plan.first_step])  # every token known so far
        self._slot: KVSlot | None = KVSlot(
            len(prompt.tokens) + self._num_tokens,
            keep_unrotated_keys=attribution is not None and attribution.method.rotary is Rotary.UNROTATED,
        )
        self._source_map = SourceMap(prompt, attribution or AttributionSettings())
        self._domain = _domain(prompt, attribution)
        self._special_ids = special_ids(model.tokenizer)
        stop = () if plan.is_completion else sampling.stop
        self._text = CompletionText(self._decode, prompt.ids, stop)
        self._waiting: list[Step] = []  # computed, but their text may still begin a stop text
        self._prefill_seconds = self._decode_seconds = self._attribution_seconds = 0.0
        self._num_attributed = 0
        self.started = Started(prompt, self._source_map.sources, sampling, attribution)
        self.finished: Finished | None = None
        for token_id in plan.given_ids[: plan.first_step]:
            self._text.push(token_id)
            self._add_source(token_id)
        if plan.first_step:
            self._end_if_due(plan.given_ids[plan.first_step - 1])

    def __iter__(self) -> Iterator[Step]:
        while self._slot is not None:
            yield from self.advance()

    def advance(self) -> list[Step]:
        """Do one prefill chunk or one step; the steps that can be told now, perhaps none.

        Raises:
            ComputationError: where the model's numbers are not finite. The generation is over then.
        """
        if self._slot is None:
            return []
        try:
            remaining = len(self._ids) - 1 - self._slot.length
            if remaining > 0:
                self._prefill(self._slot, min(remaining, PREFILL_CHUNK))
                return []
            self._step(self._slot)
        except BaseException:  # half a step cannot be taken up again
            self.close()
            raise
        return self._tell()

    def close(self) -> None:
        """Free what it holds; `advance` does nothing afterwards."""
        self._slot = None

    @property
    def _num_completion_tokens(self) -> int:
        return len(self._ids) - len(self._plan.prompt.tokens)

    def _prefill(self, slot: KVSlot, count: int) -> None:
        began = time.perf_counter()
        attribution = self._plan.attribution
        ids = self._ids[slot.length : slot.length + count]
        self._model.decoder.prefill(ids, slot, attribution.method if attribution else None)
        self._prefill_seconds += time.perf_counter() - began

    def _step(self, slot: KVSlot) -> None:
        """Read the last token, find the next one and explain it."""
        began = time.perf_counter()
        plan, attribution, index = self._plan, self._plan.attribution, self._num_completion_tokens
        explained: ExplainedStep | None = None
        if attribution is None:
            logits = self._model.decoder.step(self._ids[-1], slot)
        else:
            explained = self._model.decoder.explained_step(self._ids[-1], slot, attribution.method)
            logits = explained.logits
        distribution = Distribution.of(logits, index)
        given = index < len(plan.given_ids)
        token_id = plan.given_ids[index] if given else choose_token(distribution, plan.sampling, self._seed, index)
        logprob = distribution.logprob(token_id)
        alternatives = tuple(
            Alternative(token.id, self._decode_alone(token.id), token.logprob)
            for token in distribution.top(plan.sampling.num_alternatives)
        )
        decoded = time.perf_counter()
        self._decode_seconds += decoded - began
        row = None
        if explained is not None and attribution is not None:
            row = self._explain(explained, attribution, distribution, token_id, index)
            self._attribution_seconds += time.perf_counter() - decoded
            self._num_attributed += 1
        self._ids.append(token_id)
        self._text.push(token_id)
        self._waiting.append(
            Step(
                index=index,
                id=token_id,
                text="",  # told when it is sure
                start=0,
                end=0,
                logprob=logprob,
                alternatives=alternatives,
                special=token_id in self._special_ids,
                source_index=self._add_source(token_id),
                attribution=row,
                is_new=plan.is_completion or not given,
            )
        )
        self._end_if_due(token_id)

    def _explain(
        self,
        explained: ExplainedStep,
        attribution: AttributionSettings,
        distribution: Distribution,
        token_id: int,
        index: int,
    ) -> Attribution:
        target_id = token_id if attribution.target_token_id is None else attribution.target_token_id
        contrast_id = self._plan.contrast_id
        if attribution.contrast is not None and attribution.contrast.runner_up:
            contrast_id = distribution.runner_up(target_id)
        contributions = explained.contributions(target_id, contrast_id)
        num_tokens = len(self._ids)
        domain = None
        if self._domain is not None:  # no generated token lies in it
            domain = torch.nn.functional.pad(self._domain, (0, num_tokens - len(self._domain)))
        scores = self._source_map.aggregate(heat_map(contributions, num_tokens, attribution.method, domain)).cpu()
        if not scores.isfinite().all():
            raise ComputationError(f"the attribution of token {index} is not finite: the model's gradients overflow")
        count = attribution.top_k_sources
        if count is None or count >= len(scores):
            return Attribution(scores, None, target_id, contrast_id)
        largest = scores.abs().topk(count).indices
        return Attribution(scores[largest], largest, target_id, contrast_id)

    def _tell(self) -> list[Step]:
        """The waiting steps whose text is sure, with that text."""
        num_told = self._num_completion_tokens - len(self._waiting)
        count = max(0, self._text.num_safe_tokens - num_told)
        told, self._waiting = self._waiting[:count], self._waiting[count:]
        spans = self._text.spans[num_told : num_told + count]
        return [
            replace(step, text=self._text.text[start:end], start=start, end=end)
            for step, (start, end) in zip(told, spans, strict=True)
        ]

    def _end_if_due(self, token_id: int) -> None:
        reason: FinishReason | None = None
        if self._plan.is_completion:
            if self._num_completion_tokens == len(self._plan.given_ids):
                reason = FinishReason.END_OF_COMPLETION
        elif self._num_completion_tokens < len(self._plan.given_ids):
            return  # what is given goes on
        elif self._text.stop is not None:
            reason = FinishReason.STOP_TEXT
        elif token_id in self._model.end_ids:
            reason = FinishReason.END_OF_TEXT
        elif self._num_completion_tokens == self._num_tokens:
            reason = FinishReason.MAX_NEW_TOKENS
        if reason is None:
            return
        self._text.finish()
        self.close()
        self.finished = Finished(
            reason=FinishReason.STOP_TEXT if self._text.stop is not None else reason,
            stop=self._text.stop,
            text=self._text.text,
            num_prompt_tokens=len(self._plan.prompt.tokens),
            num_completion_tokens=self._num_completion_tokens,
            num_attributed_tokens=self._num_attributed,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            attribution_seconds=self._attribution_seconds,
        )

    def _add_source(self, token_id: int) -> int | None:
        start, end = self._text.spans[-1]
        return self._source_map.add_generated(self._text.text[start:end], special=token_id in self._special_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._model.tokenizer, ids, skip_special_tokens=True)

    def _decode_alone(self, token_id: int) -> str:
        return decode(self._model.tokenizer, [token_id], skip_special_tokens=False)


def _domain(prompt: Prompt, attribution: AttributionSettings | None) -> Tensor | None:
    """The prompt tokens over which similarities are normalised; None for all that a layer sees. [m], bool"""
    match attribution.method.normalise_over if attribution else NormaliseOver.VISIBLE:
        case NormaliseOver.VISIBLE:
            return None
        case NormaliseOver.PROMPT:
            return torch.ones(len(prompt.tokens), dtype=torch.bool)
        case NormaliseOver.USER:
            return torch.tensor([token.role is Role.USER for token in prompt.tokens])
