"""DeepLIFT against Captum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from captum.attr import (
    DeepLift as CaptumDeepLift,
)
from torch import Tensor

from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.deeplift import DeepLift
from gradellm_engine.methods.gradients.input_x_gradient import InputXGradient
from support.methods.captum_reference import Target, compare_with_captum
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_deeplift_equals_captum(case: MakeCase, family: str) -> None:
    subject = case(family)

    def captum(target: Target, x: Tensor) -> Tensor:
        baseline = x.clone()
        baseline[:, : len(subject.ids)] = 0
        result: Tensor = CaptumDeepLift(target).attribute(x, baseline)
        return result

    switches = DeepLift(aggregation=Aggregation.SUM)
    compare_with_captum(subject, switches, captum, 1e-6)
    products = subject.rows(InputXGradient(aggregation=Aggregation.SUM))
    m = len(subject.ids)
    same = [
        relative_error(row[:m], product[:m]) <= 1e-6
        for row, product in zip(subject.rows(switches), products, strict=True)
    ]
    assert all(same) == (family != "opt")  # ReLU has a rescale rule
