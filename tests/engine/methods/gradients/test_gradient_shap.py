"""GradientSHAP against integrated gradients, its expectation."""

from __future__ import annotations

from collections.abc import Callable

from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.gradient_shap import GradientShap
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from support.methods.reference_case import Case, error_of

MakeCase = Callable[..., Case]


def test_gradient_shap_is_within_its_error_of_its_expectation(case: MakeCase) -> None:
    """With one baseline, the expectation is integrated gradients."""
    subject = case("gpt2")
    exact = subject.rows(IntegratedGradients(aggregation=Aggregation.SUM, steps=300))
    misses = 0
    for seed in range(5):
        steps = subject.steps(GradientShap(aggregation=Aggregation.SUM, samples=40, seed=seed))
        for step, row in zip(steps, exact, strict=True):
            assert step.attribution is not None
            difference = (step.attribution.scores - row).abs().max().item()
            misses += difference > 3 * error_of(step)
            assert difference <= 6 * error_of(step)
    assert misses <= 1
    assert subject.rows(GradientShap(samples=4))[0].tolist() == subject.rows(GradientShap(samples=4))[0].tolist()
