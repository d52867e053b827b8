"""Grad-SAM (Barkan et al. 2021) for decoders: attention times the positive part of its gradient.

The mean is taken over heads and layers.

The paper weighs every layer's whole attention matrix with its gradient. A decoder's token is read off the last
position alone, whose row this takes: A_i ReLU(dl/dA_i), with dl/dA_i = w . v_i.
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
    """Of the heads' scores the mean. -> [T, N]; arguments as for `within.InPassMethod`."""
    return ((forward.A * U.relu()).mean((-4, -3)),)


def heat_map(total: Tensor, switches: GradSam) -> Tensor:
    """The mean over the layers. [T, S]"""
    return total / len(switches.explicit_layers)
