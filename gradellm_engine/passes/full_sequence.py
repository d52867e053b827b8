"""A pass over many sequences at once that leaves nothing behind: how their attention is computed.

Methods that look at a completion after the fact differentiate such a pass by anything, or change something in it;
metrics change the text and look at what comes after it. All sequences of a pass are of one length; causal attention
keeps what stands behind from what stands before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


class SequenceAttention(ABC):
    """What attention layers ask for their outputs."""

    @abstractmethod
    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """A layer's. [B, H, T, D], [B, G, T, D], [B, G, T, Dv] -> [B, T, H, Dv]"""


@dataclass
class FullSequenceAttention(SequenceAttention):
    """The model's own attention, by a stock kernel where nobody looks at its weights or differentiates.

    Attributes:
        weights_are_constant: whether gradients take attention weights for constants.
        watch: is shown every layer's attention, by index.
    """

    weights_are_constant: bool = False
    watch: Watch | None = None
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        q, visible = grouped(query, key.shape[1]), self._visibility(query, form.window)
        if torch.is_grad_enabled() or self.watch is not None:
            compute = torch.promote_types(q.dtype, torch.float32)
            attended = attend(q.to(compute), key.to(compute), value.to(compute), visible, form)
            if self.watch is not None:
                self.watch(index, attended)
            o = grouped_matmul(attended.A.detach(), attended.V) if self.weights_are_constant else attended.output()
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
    """As the model goes on with them. [B, G, r, T, Dv] -> [B, T, H, Dv]"""
    return o.flatten(1, 2).transpose(1, 2).contiguous()
