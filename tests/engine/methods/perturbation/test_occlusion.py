"""Occlusion against its definition, one perturbed prompt at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine import Contrast
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.post_hoc import Objective
from support.methods.reference_case import PROMPT, Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


def objective(logits: Tensor, token_id: int, kind: Objective) -> Tensor:
    match kind:
        case Objective.LOGIT:
            return logits[..., token_id]
        case Objective.LOG_PROB:
            return logits.log_softmax(-1)[..., token_id]
        case Objective.PROB:
            return logits.softmax(-1)[..., token_id]


@pytest.mark.parametrize("baseline_ids", [(), tuple(range(65, 65 + len(PROMPT) + 1))])
@pytest.mark.parametrize("kind", Objective)
def test_occlusion_is_the_drop_of_the_target(case: MakeCase, kind: Objective, baseline_ids: tuple[int, ...]) -> None:
    subject = case("llama", "float32")
    rows = subject.rows(Occlusion(kind, baseline_ids=baseline_ids))
    m = len(subject.ids)
    for row, (ids, token_id) in zip(rows, subject.prefixes(), strict=True):
        own = subject.embed(ids)
        expected = torch.zeros(len(ids), dtype=torch.float64)
        for token in range(m):
            changed = own.clone()
            changed[token] = subject.embed(baseline_ids)[token] if baseline_ids else 0
            with torch.no_grad():
                logits = subject.logits(torch.stack([own, changed]))
            expected[token] = -objective(logits, token_id, kind).diff()[0]
        assert relative_error(row, expected) <= 1e-5


def test_occlusion_by_a_contrast_is_the_difference(case: MakeCase) -> None:
    subject = case("llama", "float32")
    rows = subject.rows(Occlusion(), contrast=Contrast(token_id=80))
    own, other = subject.rows(Occlusion()), subject.rows(Occlusion(), target_token_id=80)
    for row, a, b in zip(rows, own, other, strict=True):
        assert relative_error(row, (a - b).double()) <= 1e-5
