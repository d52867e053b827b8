"""Captum's attributions of Transformers' own model, a prefix at a time, to compare gradient methods with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gradellm_engine import Contrast
from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.post_hoc import Objective
from support.methods.reference_case import Case

CONTRAST = Contrast(token_id=80)
# Tolerances; Transformers computes norms and softmaxes in float32 for any dtype.
DTYPES = {"float64": 1e-6, "float32": 1e-5}
AGGREGATED = {Aggregation.NORM: lambda x: x.norm(dim=-1), Aggregation.SUM: lambda x: x.sum(-1)}


class Target(nn.Module):
    """The objective of a token after the last position, as a module for Captum."""

    def __init__(self, case: Case, token_id: int, objective: Objective, contrast_id: int | None = None) -> None:
        super().__init__()
        self.model = case.reference
        self._case, self._token_id, self._objective, self._contrast_id = case, token_id, objective, contrast_id

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self._case.logits(embeddings)
        scores = {
            Objective.LOGIT: logits,
            Objective.LOG_PROB: logits.log_softmax(-1),
            Objective.PROB: logits.softmax(-1),
        }[self._objective]
        return scores[:, self._token_id] - (0 if self._contrast_id is None else scores[:, self._contrast_id])


def compare_with_captum(
    case: Case, switches: Any, attribute: Callable[[Target, Tensor], Tensor], tolerance: float
) -> None:
    """Compare scores with Captum's, aggregated in the same way, with and without a contrast."""
    for contrast in (None, CONTRAST):
        rows = case.rows(switches, contrast=contrast)
        for row, (ids, token_id) in zip(rows, case.prefixes(), strict=True):
            target = Target(case, token_id, switches.objective, None if contrast is None else contrast.token_id)
            numbers = attribute(target, case.embed(ids)[None])[0].detach()
            # Relative to absolute values: a sum over channels may cancel.
            difference = row.double() - AGGREGATED[switches.aggregation](numbers)
            assert difference.norm() <= tolerance * numbers.abs().sum(-1).norm()
