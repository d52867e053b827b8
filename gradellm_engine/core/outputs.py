"""The events of a request: start, tokens, scores, agreement with another engine, progress, evaluation results, end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from gradellm_engine.core.following.agreement import Agreement, Verdict
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.params import AttributionSettings
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.tokenization.sources import Source


@dataclass(frozen=True)
class Alternative:
    """One of the most probable tokens at a step.

    Attributes:
        id: its id.
        text: its text, decoded by itself.
        logprob: its log-probability under the model, natural logarithm.
    """

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Attribution:
    """The attribution of one token: how much each source contributed to it.

    Attributes:
        token_index: the token's index in the completion.
        scores: raw scores, float32 or better, on the CPU. [C] or [top_k_sources]
        source_indexes: with top_k_sources, the sources of `scores`, largest magnitude first; None otherwise.
        target_token_id: the token whose logit is explained.
        contrast_token_id: the token whose logit is subtracted from the target's, if any.
        error: the method's own error estimate; None where it has none.
    """

    token_index: int
    scores: Tensor
    source_indexes: Tensor | None
    target_token_id: int
    contrast_token_id: int | None
    error: float | None = None


@dataclass(frozen=True)
class ChunkAgreement:
    """How far the log-probabilities of another engine agree with the model's, for tokens that it wrote.

    Attributes:
        first_token: index of the first token of the chunk that was compared.
        chunk: the agreement on the chunk's tokens.
        total: the agreement on all tokens so far.
        verdict: whether the other engine runs the same model, by `total`.
    """

    first_token: int
    chunk: Agreement
    total: Agreement
    verdict: Verdict


@dataclass(frozen=True)
class Progress:
    """Progress of a post-hoc method or an evaluation.

    Attributes:
        done: share of its work, 0 to 1.
    """

    done: float


@dataclass(frozen=True)
class PromptProgress:
    """Progress of a prefill that takes several passes.

    Attributes:
        done: share of the prompt's tokens, 0 to 1.
    """

    done: float


@dataclass(frozen=True)
class Step:
    """A token of the completion.

    Attributes:
        index: its index in the completion.
        id: its id.
        text: the text that it adds.
        start: index of the text's first code point in the completion.
        end: one past its last.
        logprob: log-probability under the model, before temperature, top_k and top_p; natural logarithm.
        alternatives: the most probable tokens, best first.
        special: whether it is a special token.
        word: index of its word in the completion, from 0; see `gradellm_engine.tokenization.words`. None for a token
            without text, which may be part of the next character: it belongs to the word of the next token with text,
            or of the previous one if none follows.
        source_index: its column in the attribution rows of later tokens, where the prefix is scored.
        attribution: set by `GenerationIterator`; None in the scheduler's events, which carry it separately.
        is_new: False for a forced token of a resumed generation.
        forced_by_grammar: whether the request's structured output allowed no other token.
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
    forced_by_grammar: bool = False


class FinishReason(StrEnum):
    """Why a completion ended."""

    END_OF_TEXT = "end_of_text"
    STOP_TEXT = "stop_text"
    STOP_TOKEN = "stop_token"  # noqa: S105 (a reason, not a password)
    MAX_NEW_TOKENS = "max_new_tokens"
    END_OF_COMPLETION = "end_of_completion"


@dataclass(frozen=True)
class Finished:
    """The end of a request, with its result.

    Attributes:
        reason: why the completion ended.
        stop: the stop text that ended it, if any.
        text: the completion's text.
        num_prompt_tokens: tokens of the prompt.
        num_completion_tokens: tokens of the completion, forced ones included.
        num_attributed_tokens: tokens of the completion that were explained.
        num_reused_tokens: tokens of the prompt that came from the prefix cache.
        queue_seconds: time in the queue.
        prefill_seconds: time of passes that prefilled the prompt.
        decode_seconds: time of decode passes, without attribution.
        attribution_seconds: time of backward passes, replays and post-hoc passes.
        agreement: of a followed completion, on all its tokens; None for others.
        verdict: whether the engine that wrote a followed completion runs the same model; None for others.
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
    agreement: Agreement | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Started:
    """The start of a request, with its resolved settings.

    Attributes:
        prompt: the prompt's tokens.
        sources: the columns of scores over the prompt.
        sampling: with `seed` and `max_new_tokens` set.
        attribution: with explicit layers; None for tokens alone.
        evaluation: with explicit layers; None for requests other than evaluations.
        structured_output: what the completion has to be; None for any text.
    """

    prompt: Prompt
    sources: tuple[Source, ...]
    sampling: Sampling
    attribution: AttributionSettings | None
    evaluation: EvaluationSettings | None = None
    structured_output: StructuredOutput | None = None

    @property
    def unscored_tokens(self) -> tuple[int, ...]:
        """The prompt's tokens that are no sources: the attention sink, where it is excluded."""
        return (0,) if self.attribution is not None and self.attribution.method.excludes_sink else ()


Event = (
    Started
    | Step
    | Attribution
    | ChunkAgreement
    | Progress
    | PromptProgress
    | EvaluationItem
    | EvaluationSummary
    | Finished
)
