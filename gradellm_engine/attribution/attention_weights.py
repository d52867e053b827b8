"""Attention weights at the explained token's position, averaged over heads; of the last layer by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.params import LayerSwitches


@dataclass(frozen=True)
class Attention(LayerSwitches):
    """Which layers; scores are averaged over them, too."""

    name: ClassVar[str] = "attention"
    layers: int | tuple[int, ...] | None = 1


def layer_maps(
    forward: AttentionState, w: Tensor, U: Tensor, switches: Attention, unrotated: tuple[Tensor, Tensor] | None
) -> tuple[Tensor]:
    """Attention weights, averaged over heads. -> [T, N]; arguments as for `in_pass.InPassMethod`."""
    return (forward.A.mean((-4, -3)),)


def heat_map(total: Tensor, switches: Attention) -> Tensor:
    """The mean over the layers. [T, S]"""
    return total / len(switches.explicit_layers)
