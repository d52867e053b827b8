"""Methods whose scores are made of what attention computes in the explained token's own pass.

In every layer that a method selects, its backward pass hands over the attention's products; a method keeps maps of
them, a number a token. From those of all layers, at once, it makes scores, which are summed over the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.attribution import attention_weights, grad_ellm, grad_sam
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.params import GradEllm, Switches

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class InPassMethod:
    """What a method computes.

    Attributes:
        layer_maps: one layer's: its attention, w = dl/do [G, r, T, Dv], U = w V^T [G, r, T, N], the switches, and
            queries and keys before the rotary embedding where asked for -> what is kept of it, [T, N] each.
        layer_scores: the layers' maps [.., T, N], the switches, and the keys over which is normalised (None for all)
            -> their scores [.., T, N].
        heat_map: from the layers' sum [T, S] and the switches to the scores [T, S].
        is_mean: whether maps are means over heads, rather than sums.
    """

    layer_maps: Callable[[AttentionState, Tensor, Tensor, Any, tuple[Tensor, Tensor] | None], Maps]
    layer_scores: Callable[[Maps, Any, Tensor | None], Tensor]
    heat_map: Callable[[Tensor, Any], Tensor]
    is_mean: bool = False


def _only(maps: Maps, switches: Switches, domain: Tensor | None) -> Tensor:
    """The one map that was kept is the layer's scores."""
    return maps[0]


_ARITHMETIC: dict[type[Switches], InPassMethod] = {
    GradEllm: InPassMethod(grad_ellm.layer_maps, grad_ellm.layer_scores, grad_ellm.heat_map),
    attention_weights.Attention: InPassMethod(
        attention_weights.layer_maps, _only, attention_weights.heat_map, is_mean=True
    ),
    grad_sam.GradSam: InPassMethod(grad_sam.layer_maps, _only, grad_sam.heat_map, is_mean=True),
}


def in_pass_method(switches: Switches) -> InPassMethod:
    """That of a method within a pass."""
    return _ARITHMETIC[type(switches)]


def sum_layer_scores(
    rows: Sequence[Maps], switches: Switches, domain: Tensor | None, ranks: ProcessGroup | None = None
) -> Tensor:
    """The sum of layers' scores, of layers that see the same keys. [T, N] each -> [T, N]

    Where `ranks` share the heads out, maps are first put together of all of theirs.
    """
    arithmetic = in_pass_method(switches)
    maps = tuple(torch.stack(layers) for layers in zip(*rows, strict=True))
    if ranks is not None:
        maps = ranks.all_reduce_sum(torch.stack(maps)).div(ranks.size if arithmetic.is_mean else 1).unbind()
    return arithmetic.layer_scores(maps, switches, domain).sum(0)
