"""Integrated gradients against Captum, and their completeness error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from captum.attr import (
    IntegratedGradients as CaptumIntegratedGradients,
)
from torch import Tensor

from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from support.methods.captum_reference import DTYPES, Target, compare_with_captum
from support.methods.reference_case import PROMPT, Case, error_of

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("baseline_ids", [(), tuple(range(65, 65 + len(PROMPT) + 1))])
def test_integrated_gradients_equal_captum(
    case: MakeCase, aggregation: Aggregation, baseline_ids: tuple[int, ...], dtype: str
) -> None:
    subject = case("llama", dtype)

    def captum(target: Target, x: Tensor) -> Tensor:
        baseline = x.clone()
        m = len(subject.ids)
        baseline[:, :m] = subject.embed(baseline_ids) if baseline_ids else 0
        result: Tensor = CaptumIntegratedGradients(target).attribute(x, baseline, n_steps=12, method="gausslegendre")
        return result

    switches = IntegratedGradients(aggregation=aggregation, steps=12, baseline_ids=baseline_ids)
    compare_with_captum(subject, switches, captum, DTYPES[dtype])


def test_the_error_is_that_of_completeness(case: MakeCase) -> None:
    subject = case("gpt2")
    for num_points, limit in ((3, None), (200, 1e-3)):
        steps = subject.steps(IntegratedGradients(aggregation=Aggregation.SUM, steps=num_points))
        for step, (ids, token_id) in zip(steps, subject.prefixes(), strict=True):
            after, baseline = subject.embed(ids), subject.embed(ids)
            baseline[: len(subject.ids)] = 0
            gained = (subject.logits(after[None]) - subject.logits(baseline[None]))[0, token_id].item()
            assert step.attribution is not None
            assert error_of(step) == pytest.approx(abs(step.attribution.scores.sum().item() - gained), abs=1e-5)
            assert limit is None or error_of(step) <= limit
