"""A ragged pass whose tokens attend one by one, so that attention does not depend on batch composition.

See `gradellm_engine.layers.batch_invariant` for the rest of batch-invariant execution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.ragged import RaggedLayer, RaggedPass

SLOT_ALIGNMENT = 16  # tokens: a multiple is 64 bytes of float32 for any head width


class _SingleTokenPass(RaggedPass):
    """Chunks of one token each."""

    def split_by_chunk(self, x: Tensor) -> list[Tensor]:
        """See `RaggedPass`; as copies, so that addresses and strides do not depend on batch composition."""
        return [x[:, rows].clone(memory_format=torch.contiguous_format) for rows in self.row_slices]


@dataclass
class PerTokenPass(RaggedPass):
    """Chunks of any length, each of whose tokens attends by itself."""

    _single_tokens: _SingleTokenPass = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._single_tokens = _SingleTokenPass(
            [token for chunk in self.chunks for token in _tokens(chunk)], self.rotary_of, graph_anchor=self.graph_anchor
        )

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> RaggedLayer:
        """See `AttentionPass`."""
        self._single_tokens.output_is_used = self.output_is_used
        return self._single_tokens.layer_attention(module, index, form)

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`."""
        rows = iter(self._single_tokens.heat_maps())
        return [
            torch.cat([F.pad(next(rows), (0, chunk.end - end)) for end in range(chunk.start + 1, chunk.end + 1)])
            for chunk in self.chunks
            if chunk.explain is not None
        ]


def _tokens(chunk: SequenceChunk) -> Iterator[SequenceChunk]:
    """A chunk's tokens as chunks of one token."""
    for offset, token_id in enumerate(chunk.ids):
        yield replace(chunk, ids=[token_id], start=chunk.start + offset)
