"""What is known of the upstream for one answer: whether it has the explainer's model, and where token ids are from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gradellm import Event
from gradellm.models import AgreementTotal, UpstreamDtype

__all__ = ["Compared", "UpstreamProvenance"]

Ids = Literal["upstream", "tokenised again"]
Compared = Literal["same", "different", "not proved"]


@dataclass(frozen=True)
class UpstreamProvenance:
    """Provenance of an answer that the upstream generated.

    Attributes:
        dtype: the numbers that the upstream computes with, as declared.
        ids: where the answer's token ids are from.
        tokenizer: whether the upstream's tokenizer is the explainer's, as compared at the start.
        template: whether the prompt's ids are those of the explainer's chat template.
        log_probs: how far the upstream's agree with the explainer's, on the tokens so far; None if none were compared.
    """

    dtype: UpstreamDtype
    tokenizer: Compared = "not proved"
    template: Compared = "not proved"
    ids: Ids = "upstream"
    log_probs: AgreementTotal | None = None

    def tokenised_again(self) -> UpstreamProvenance:
        """Return that of an answer whose text was tokenised by the explainer."""
        return replace(self, ids="tokenised again")

    def after(self, event: Event) -> UpstreamProvenance:
        """Return that after an event of the explainer, which may compare log-probabilities."""
        compared = None if event.agreement is None else event.agreement.total
        if event.finished is not None:
            compared = event.finished.agreement
        return self if compared is None else replace(self, log_probs=compared)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)
