"""Grad-SAM (Barkan et al. 2021) for decoders: attention times the positive part of its gradient.

    score_i = mean over heads and layers of A_i ReLU(dl/dA_i),  dl/dA_i = w . v_i

The paper weighs every layer's whole attention matrix with its gradient. A decoder-only model computes the next token
from the last position alone, so the scores are that row's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.params import LayerSwitches


@dataclass(frozen=True)
class GradSam(LayerSwitches):
    """Which layers."""

    name: ClassVar[str] = "grad_sam"


def layer_maps(
    forward: AttentionState, w: Tensor, U: Tensor, switches: GradSam, unrotated: tuple[Tensor, Tensor] | None
) -> tuple[Tensor]:
    """A_i ReLU(u_i), averaged over heads. -> [T, N]; arguments as for `in_pass.InPassMethod`."""
    return ((forward.A * U.relu()).mean((-4, -3)),)


def heat_map(total: Tensor, switches: GradSam) -> Tensor:
    """The mean over the layers. [T, S]"""
    return total / len(switches.explicit_layers)
