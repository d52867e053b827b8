"""A prefill and a decode step in one pass, which reads the model's weights once for both (vLLM's chunked prefill).

The tokens that are prefilled come first in the row and the decode step's last, so that the logits that are sampled
from are those of the last rows. A prompt's last token may be decoded in the pass that prefills the tokens before it:
keys and values of all new tokens are stored before a layer's attention is computed. Nothing is explained in such a
pass: its explained tokens are replayed after it, with the linear outputs that it put into the activation cache, so that
the backward pass has no rows of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.passes.base import AttentionPass, LayerAttention, QKVGrads


class MixedPass:
    """Several passes as one; see `gradellm_engine.passes.base.AttentionPass`.

    Attributes:
        parts: the passes, in the order of their tokens in the row.
        graph_anchor: None: nothing is explained.
        lowest: see `AttentionPass`.
        output_is_used: see `AttentionPass`.
        num_logits: see `AttentionPass`.
        relevance_rows: none.
        ids_and_positions: see `AttentionPass`.
    """

    graph_anchor: Tensor | None = None
    lowest = 0
    output_is_used = True
    relevance_rows = False

    def __init__(self, parts: Sequence[AttentionPass], num_logits: int) -> None:
        self.parts, self.num_logits = parts, num_logits
        rows = [part.ids_and_positions for part in parts]
        self.ids_and_positions = torch.cat([row.to(rows[-1].device) for row in rows], dim=1)
        ends = accumulate((row.shape[1] for row in rows), initial=0)
        self._slices = [slice(start, end) for start, end in pairwise(ends)]

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionPass`."""
        for part, rows in zip(self.parts, self._slices, strict=True):
            part.store(index, keys[:, rows], values[:, rows])

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `AttentionPass`."""
        for part, rows in zip(self.parts, self._slices, strict=True):
            part.store_rotary(index, cosines[rows], sines[rows])

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> MixedLayer:
        """See `AttentionPass`."""
        return MixedLayer([part.layer_attention(module, index, form) for part in self.parts], self._slices)

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`: none."""
        return []


@dataclass
class MixedLayer:
    """One layer's attention in a mixed pass: each part computes its own rows."""

    parts: Sequence[LayerAttention]
    slices: Sequence[slice]

    def output(self, query: Tensor) -> Tensor:
        """See `LayerAttention`."""
        return torch.cat(
            [part.output(query[:, :, rows]) for part, rows in zip(self.parts, self.slices, strict=True)], dim=1
        )

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        """See `LayerAttention`.

        Raises:
            RuntimeError: always: a mixed pass has no graph.
        """
        raise RuntimeError("a mixed pass has no backward pass")
