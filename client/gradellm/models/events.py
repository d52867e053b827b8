"""The events of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradellm.models.evaluation import EvaluationItem, EvaluationSummary
from gradellm.models.settings import Provenance
from gradellm.models.tokens import Attribution, PromptToken, Source, Token

Verdict = Literal["unknown", "same", "compatible", "different"]
"""Whether another engine runs the same model, by its log-probabilities. "compatible": its numbers are too coarse to
prove it; "unknown": fewer than 8 tokens were compared."""
FinishReason = Literal["end_of_text", "stop_text", "max_new_tokens", "end_of_completion", "stop_token"]


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: the prompt as tokens, and the resolved settings."""

    prompt_text: str
    """The text that was tokenized, chat template included."""
    prompt_tokens: tuple[PromptToken, ...]
    sources: tuple[Source, ...]
    """The columns over the prompt at resolution word or segment; empty at resolution token."""
    provenance: Provenance
    unplaced_messages: tuple[int, ...] = ()
    """Messages whose text the chat template rewrote, so that their tokens cannot be located."""
    unscored_tokens: tuple[int, ...] = ()
    """Prompt tokens that the settings leave out, such as the attention sink: no sources, with a score of 0."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a slow method, or of prefill."""

    done: float
    """Share of the work that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    """Forced tokens included."""
    attributed_tokens: int
    reused_prompt_tokens: int
    """Prompt tokens found in the prefix cache."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations in seconds."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    """Without attribution."""
    attribution_seconds: float


@dataclass(frozen=True, slots=True)
class AgreementTotal:
    """How far another engine's log-probabilities agree with the server's, on all tokens so far."""

    tokens: int
    """Tokens that were compared."""
    largest: float
    """The largest difference of a token's log-probability by magnitude, in nats."""
    mean: float
    """The mean difference of these by magnitude."""
    noise: float
    """The estimated noise in the other engine's logits, in nats."""
    verdict: Verdict | None
    """None for a verdict of a newer server that this client does not know."""
    logprobs: int = 0
    """Log-probabilities that were compared, those of alternatives included; 0 from an older server."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement on a chunk of a followed completion."""

    first_token: int
    """Index of the first token that was compared."""
    tokens: int
    """Tokens of the chunk that were compared."""
    largest: float
    mean: float
    total: AgreementTotal
    """The agreement on all tokens so far, with the verdict."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event."""

    reason: FinishReason | None
    """Why the stream ended. None for a reason of a newer server that this client does not know."""
    stop: str
    """The stop text that ended the completion."""
    usage: Usage
    timings: Timings
    agreement: AgreementTotal | None = None
    """Of a followed completion: the agreement on all of it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: exactly one of its fields is not None.

    A generation has events of the first four kinds; a followed completion has `agreement`, too. `prompt_progress`, the
    progress of a prefill in several passes, is passed to `on_event` only and is not yielded by iteration.
    """

    started: Started | None = None
    token: Token | None = None
    attribution: Attribution | None = None
    finished: Finished | None = None
    progress: Progress | None = None
    item: EvaluationItem | None = None
    summary: EvaluationSummary | None = None
    prompt_progress: Progress | None = None
    agreement: Agreement | None = None
