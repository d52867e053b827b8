"""Attention of whole sequences without a KV cache.

Post-hoc methods differentiate such a pass or change something in it; faithfulness metrics perturb the text and read the
logits. The sequences of a pass have one length: shorter ones are padded at the end, where causal attention ignores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    attend,
    attention_output,
    grouped,
    grouped_matmul,
    visibility,
)

Watch = Callable[[int, AttentionState], None]


class SequenceAttention(ABC):
    """Computes the attention of every layer in a pass over whole sequences."""

    @abstractmethod
    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """A layer's attention output. [B, H, T, D], [B, G, T, D], [B, G, T, Dv] -> [B, T, H, Dv]"""


@dataclass
class FullSequenceAttention(SequenceAttention):
    """The model's own attention, by a stock kernel where neither its weights nor gradients are needed.

    Attributes:
        weights_are_constant: whether gradients treat attention weights as constants.
        watch: called with every layer's index and attention.
    """

    weights_are_constant: bool = False
    watch: Watch | None = None
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        q, visible = grouped(query, key.shape[1]), self._visibility(query, form.window)
        if torch.is_grad_enabled() or self.watch is not None:
            compute = torch.promote_types(q.dtype, torch.float32)
            state = attend(q.to(compute), key.to(compute), value.to(compute), visible, form)
            if self.watch is not None:
                self.watch(index, state)
            o = grouped_matmul(state.A.detach(), state.V) if self.weights_are_constant else state.output()
            o = o.to(query.dtype)
        else:
            o, _ = attention_output(q, key, value, visible, form)
        return ungrouped(o)

    def _visibility(self, query: Tensor, window: int | None) -> Tensor | None:
        T, device = query.shape[2], query.device
        if (T, window, device) not in self._visible:
            self._visible[T, window, device] = visibility(0, T, 0, T, window, device)
        return self._visible[T, window, device]


def ungrouped(o: Tensor) -> Tensor:
    """Attention outputs in the model's layout. [B, G, r, T, Dv] -> [B, T, H, Dv]"""
    return o.flatten(1, 2).transpose(1, 2).contiguous()
