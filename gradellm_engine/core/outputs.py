"""What a request tells of itself while it runs: how it was understood, token after token, scores, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.params import AttributionSettings, Sampling
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.tokenization.sources import Source


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
        token_index: the token's place in the completion.
        scores: raw scores, float32 or better, on the CPU. [C], or [top_k_sources]
        source_indexes: with top_k_sources, which sources, the largest score by magnitude first; None otherwise.
        target_token_id: the token whose logit was explained.
        contrast_token_id: the token whose logit was taken off, if one was.
        error: the method's own measure of how far off the scores are; None where it has none.
    """

    token_index: int
    scores: Tensor
    source_indexes: Tensor | None
    target_token_id: int
    contrast_token_id: int | None
    error: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far a method is that looks at a completion after the fact, or an evaluation.

    Attributes:
        done: of its work, 0 to 1.
    """

    done: float


@dataclass(frozen=True)
class PromptProgress:
    """How far a prompt is read, while that takes several passes.

    Attributes:
        done: of its tokens, 0 to 1.
    """

    done: float


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
        word: which word of the completion it belongs to, from 0: see `gradellm_engine.tokenization.words`. None for a
            token without text, which may be a part of the next character: it is in the word of the next token with
            text, or of the one before where no text follows.
        source_index: the column of later rows that stands for it, where the prefix is scored.
        attribution: None where it was not asked for, and where it comes on its own.
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
    word: int | None
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
        num_reused_tokens: tokens of the prompt that an earlier request had read.
        queue_seconds: spent waiting for a place.
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
    num_reused_tokens: int
    queue_seconds: float
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
        evaluation: likewise.
    """

    prompt: Prompt
    sources: tuple[Source, ...]
    sampling: Sampling
    attribution: AttributionSettings | None
    evaluation: EvaluationSettings | None = None


Event = Started | Step | Attribution | Progress | PromptProgress | EvaluationItem | EvaluationSummary | Finished
