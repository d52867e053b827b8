"""Saliency against Captum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from captum.attr import (
    Saliency as CaptumSaliency,
)

from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.post_hoc import Objective
from support.methods.captum_reference import DTYPES, compare_with_captum
from support.methods.reference_case import Case

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_saliency_equals_captum(
    case: MakeCase, family: str, objective: Objective, aggregation: Aggregation, dtype: str
) -> None:
    # Captum's saliency takes absolute values by default, channel by channel.
    compare_with_captum(
        case(family, dtype),
        Saliency(objective, aggregation),
        lambda t, x: CaptumSaliency(t).attribute(x, abs=False),
        DTYPES[dtype],
    )
