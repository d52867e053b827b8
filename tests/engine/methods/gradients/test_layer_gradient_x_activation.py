"""Layer gradient x activation against Captum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from captum.attr import (
    InputXGradient as CaptumInputXGradient,
)
from captum.attr import (
    LayerGradientXActivation as CaptumLayerGradientXActivation,
)
from torch import Tensor

from gradellm_engine.methods.gradients.layer_gradient_x_activation import LayerGradientXActivation
from support.methods.captum_reference import DTYPES, Target, compare_with_captum
from support.methods.reference_case import Case

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [None, -1, 0, 2])
def test_layer_gradient_x_activation_equals_captum(case: MakeCase, layer: int | None, dtype: str) -> None:
    subject = case("llama", dtype)

    def captum(target: Target, x: Tensor) -> Tensor:
        if layer == -1:
            result: Tensor = CaptumInputXGradient(target).attribute(x)
            return result
        block = subject.reference.model.layers[1 if layer is None else layer]
        activations: Tensor = CaptumLayerGradientXActivation(target, block).attribute(x)
        return activations

    compare_with_captum(subject, LayerGradientXActivation(layer=layer), captum, DTYPES[dtype])
    if layer == 2:  # the last layer reaches the target only at the last position
        for row in subject.rows(LayerGradientXActivation(layer=layer)):
            assert row[-1] > 0
            assert not row[:-1].any()
