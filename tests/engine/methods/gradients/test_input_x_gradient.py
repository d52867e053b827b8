"""Input x gradient against Captum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from captum.attr import (
    InputXGradient as CaptumInputXGradient,
)

from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.input_x_gradient import InputXGradient
from gradellm_engine.methods.post_hoc import Objective
from support.methods.captum_reference import DTYPES, compare_with_captum
from support.methods.reference_case import Case

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_input_x_gradient_equals_captum(
    case: MakeCase, family: str, objective: Objective, aggregation: Aggregation, dtype: str
) -> None:
    compare_with_captum(
        case(family, dtype),
        InputXGradient(objective, aggregation),
        lambda t, x: CaptumInputXGradient(t).attribute(x),
        DTYPES[dtype],
    )
