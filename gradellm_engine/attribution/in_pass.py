"""Attribution methods whose scores are computed from attention's products in the explained token's own pass.

In every layer that a method selects, attention's backward pass computes the method's maps, one number a token each.
The maps of all layers together become scores, which are summed over the layers.

A method's switches are a subclass of `LayerSwitches`. It has a row here, with its functions, and one in
`gradellm_engine.methods.registry`, with its description and cost.
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
    """The functions of a method.

    Attributes:
        layer_maps: one layer's attention, w = dl/do [G, r, T, Dv], U = w V^T [G, r, T, N], the settings, and queries
            and keys before the rotary embedding where the method needs them -> the layer's maps, [T, N] each.
        layer_scores: layers' maps [.., T, N], the settings, and the keys over which similarities are normalised (None
            for all) -> the layers' scores [.., T, N].
        heat_map: the sum over layers [T, S] and the settings -> the scores [T, S].
        is_mean: whether maps are means over heads, rather than sums.
    """

    layer_maps: Callable[[AttentionState, Tensor, Tensor, Any, tuple[Tensor, Tensor] | None], Maps]
    layer_scores: Callable[[Maps, Any, Tensor | None], Tensor]
    heat_map: Callable[[Tensor, Any], Tensor]
    is_mean: bool = False


def _first_map(maps: Maps, switches: Switches, domain: Tensor | None) -> Tensor:
    """The only map is the layer's scores."""
    return maps[0]


_METHODS: dict[type[Switches], InPassMethod] = {
    GradEllm: InPassMethod(grad_ellm.layer_maps, grad_ellm.layer_scores, grad_ellm.heat_map),
    attention_weights.Attention: InPassMethod(
        attention_weights.layer_maps, _first_map, attention_weights.heat_map, is_mean=True
    ),
    grad_sam.GradSam: InPassMethod(grad_sam.layer_maps, _first_map, grad_sam.heat_map, is_mean=True),
}


def in_pass_method(switches: Switches) -> InPassMethod:
    """The functions of the method with these settings."""
    return _METHODS[type(switches)]


def sum_layer_scores(
    rows: Sequence[Maps], switches: Switches, domain: Tensor | None, ranks: ProcessGroup | None = None
) -> Tensor:
    """The sum of the scores of layers that see the same keys. [T, N] each -> [T, N]

    Args:
        rows: each layer's maps.
        switches: the method's settings.
        domain: the keys over which similarities are normalised; None for all.
        ranks: the process group that shares the heads, whose maps are summed first; None where all heads are local.
    """
    method = in_pass_method(switches)
    maps = tuple(torch.stack(layers) for layers in zip(*rows, strict=True))
    if ranks is not None:
        maps = ranks.all_reduce_sum(torch.stack(maps)).div(ranks.size if method.is_mean else 1).unbind()
    return method.layer_scores(maps, switches, domain).sum(0)
