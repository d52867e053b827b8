"""Methods whose scores are made of what attention computes in the explained token's own pass.

In every layer that a method selects, its backward pass hands over the attention's products; what the method makes of
them is summed over the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradellm_engine.attention import Attended
from gradellm_engine.methods import attention, grad_ellm, grad_sam
from gradellm_engine.settings import GradEllm, Switches


@dataclass(frozen=True)
class Arithmetic:
    """What a method computes.

    Attributes:
        layer_scores: one layer's: its attention, w = dl/do [G, r, T, Dv], U = w V^T [G, r, T, N], the switches, the
            keys over which is normalised (None for all), and queries and keys before the rotary embedding where asked
            for -> [T, N].
        heat_map: from the layers' sum [T, S] and the switches to the scores [T, S].
    """

    layer_scores: Callable[[Attended, Tensor, Tensor, Any, Tensor | None, tuple[Tensor, Tensor] | None], Tensor]
    heat_map: Callable[[Tensor, Any], Tensor]


_ARITHMETIC: dict[type[Switches], Arithmetic] = {
    GradEllm: Arithmetic(grad_ellm.layer_scores, grad_ellm.heat_map),
    attention.Attention: Arithmetic(attention.layer_scores, attention.heat_map),
    grad_sam.GradSam: Arithmetic(grad_sam.layer_scores, grad_sam.heat_map),
}


def arithmetic_of(switches: Switches) -> Arithmetic:
    """That of a method within a pass."""
    return _ARITHMETIC[type(switches)]
