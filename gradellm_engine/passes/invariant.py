"""A pass whose tokens attend one by one, so that no result depends on batch composition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.ragged import RaggedLayer, RaggedPass

ALIGNED_PLACES = 16  # of a slot's beginning: of float32 and any width, 64 bytes


class _EachAlone(RaggedPass):
    """Parts of one token each."""

    def shares(self, x: Tensor) -> list[Tensor]:
        """See `RaggedPass`; in memory of their own, so that neither addresses nor strides tell of others."""
        return [x[:, place].clone(memory_format=torch.contiguous_format) for place in self.places]


@dataclass
class PerTokenPass(RaggedPass):
    """Parts of any length, each of whose tokens attends by itself."""

    _each: _EachAlone = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._each = _EachAlone(
            [token for part in self.parts for token in _tokens(part)], self.rotary_of, graph_anchor=self.graph_anchor
        )

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> RaggedLayer:
        """See `Pass`."""
        self._each.output_is_used = self.output_is_used
        return self._each.layer_attention(module, index, form)

    def heat_maps(self) -> list[Tensor]:
        """See `Pass`."""
        rows = iter(self._each.heat_maps())
        return [
            torch.cat([F.pad(next(rows), (0, part.end - end)) for end in range(part.start + 1, part.end + 1)])
            for part in self.parts
            if part.explain is not None
        ]


def _tokens(part: SequenceChunk) -> Iterator[SequenceChunk]:
    """Its tokens, each a part."""
    for place, token_id in enumerate(part.ids):
        yield replace(part, ids=[token_id], start=part.start + place)
