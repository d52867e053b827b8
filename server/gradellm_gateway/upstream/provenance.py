"""What is known of the upstream for one answer: whether it has the explainer's model, and where token ids are from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gradellm import Event

__all__ = ["LogProbs", "UpstreamProvenance"]

Ids = Literal["upstream", "tokenised again"]
Compared = Literal["same", "different", "not proved"]


@dataclass(frozen=True)
class LogProbs:
    """How the upstream's log-probabilities of the answer's tokens differ from the explainer's.

    Attributes:
        tokens: those that were compared.
        largest: the largest difference, in nats.
        mean: the mean of the differences' magnitudes.
        noise: what the declared numbers let expect.
        verdict: "same", "compatible", "different" or "unknown".
    """

    tokens: int = 0
    largest: float = 0.0
    mean: float = 0.0
    noise: float = 0.0
    verdict: str = "unknown"


@dataclass(frozen=True)
class UpstreamProvenance:
    """Provenance of an answer that the upstream generated.

    Attributes:
        dtype: the numbers that the upstream computes with, as declared.
        ids: where the answer's token ids are from.
        tokenizer: whether the upstream's tokenizer is the explainer's, as compared at the start.
        template: whether the prompt's ids are those of the explainer's chat template.
        log_probs: compared as the answer came.
    """

    dtype: str
    tokenizer: Compared = "not proved"
    template: Compared = "not proved"
    ids: Ids = "upstream"
    log_probs: LogProbs = LogProbs()

    def tokenised_again(self) -> UpstreamProvenance:
        """Return that of an answer whose text was tokenised by the explainer."""
        return replace(self, ids="tokenised again")

    def after(self, event: Event) -> UpstreamProvenance:
        """Return that after an event of the explainer, which may have a comparison of log-probabilities."""
        agreement = getattr(event, "agreement", None)
        verdict = getattr(event.finished, "verdict", None)
        log_probs = self.log_probs
        if agreement is not None:
            tokens = log_probs.tokens + agreement.num_tokens
            mean = (log_probs.mean * log_probs.tokens + agreement.mean * agreement.num_tokens) / max(1, tokens)
            largest = max(log_probs.largest, agreement.largest)
            log_probs = LogProbs(tokens, largest, mean, agreement.noise, agreement.verdict)
        if verdict is not None:
            log_probs = replace(log_probs, verdict=verdict)
        return self if log_probs is self.log_probs else replace(self, log_probs=log_probs)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)
