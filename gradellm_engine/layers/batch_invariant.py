"""A pass whose numbers do not depend on who else is in it: each token's, to the last bit, as if it were read alone.

Floating-point sums depend on the order of their terms, and libraries choose it by the size of the whole: a row's result
is another one beside other rows. So a token that was decoded alone gets other last bits when it is read in a piece of a
prompt, and every layer, and the gradient of every layer, makes more of that. What holds here for each kind of
operation:

- Products with weights (`gradellm_engine.layers.invariant_gemm`). Libraries sum in a few orders, each for some numbers
  of rows. Rows are padded to numbers for which the order is one and the same; which these are is tried for each shape
  of weight, with all numbers of rows up to a block's, when a model is loaded.
- Attention (`PerTokenPass`). Each query attends by itself, to its own prefix: the same calls with the same shapes as
  in a decode step alone. Slots begin where addresses are aligned alike (`ALIGNED_PLACES`).
- All else (`patch_elementwise_modules`). PyTorch takes vectors of elements and the last few one by one, by other
  functions for what is not a sum or a product, and shares more than some elements out among threads. So norms,
  activations and rotary embeddings are computed for as many tokens at a time as are whole vectors in one thread; where
  a token is not whole vectors, for one at a time.

What comes of it is one order for each token, whatever comes beside it; on other processors, with another number of
threads or another release of PyTorch it may be another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradellm_engine.layers.rms_norm import FrozenNorm
from gradellm_engine.passes.ragged import RaggedLayer, RaggedPass, SequenceChunk

if TYPE_CHECKING:
    from gradellm_engine.attention.ops import AttentionForm

NAME = "batch-invariant"
ALIGNED_PLACES = 16  # of a slot's beginning: of float32 and any width, 64 bytes
DTYPES = (torch.float32, torch.float64)

_WHOLE_VECTORS = 32  # float32 numbers: two vectors of the widest kind, as loops are unrolled
_ONE_THREAD = 2**15  # elements from which on an operation is shared out among threads


class _ByTokens(nn.Module):
    """What a module that takes tokens by themselves becomes, beside the class that it had.

    [1, T, ..] -> [1, T, ..], or [T, width] -> [T, width], as OPT has them.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (passed on)
        whole = super().forward
        dim = 0 if x.dim() == 2 else 1
        count = self._at_a_time(x.shape[dim + 1 :])
        if x.shape[dim] <= count or (dim and x.shape[0] != 1):
            # A view, as blocks are: the module's own gradients by it are summed before others are added.
            one: Tensor = whole(x.view_as(x), *args, **kwargs)
            return one
        return torch.cat([whole(block, *args, **kwargs) for block in torch.split(x, count, dim)], dim=dim)

    @staticmethod
    def _at_a_time(shape: torch.Size) -> int:
        """How many tokens of a shape are whole vectors in one thread; one where a token is not."""
        return 1 if not shape or shape[-1] % _WHOLE_VECTORS else max(1, (_ONE_THREAD - 1) // shape.numel())


class _OneByOne(_ByTokens):
    """Likewise of a module that makes single numbers of tokens, which are never whole vectors, on its way."""

    @staticmethod
    def _at_a_time(shape: torch.Size) -> int:
        return 1


class _ByPositions(nn.Module):
    """What a rotary embedding becomes: cosines and sines [1, T, width] of positions [1, T], one after the other."""

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        whole = super().forward
        if position_ids.shape[0] != 1 or position_ids.shape[1] == 1:
            its: tuple[Tensor, Tensor] = whole(x, position_ids, *args, **kwargs)
            return its
        each = [whole(x, position, *args, **kwargs) for position in torch.split(position_ids, 1, 1)]
        cosines, sines = zip(*each, strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)


_classes: dict[tuple[type, type], type] = {}


def _become(module: nn.Module, other: type[nn.Module]) -> None:
    """Make it one of its class and another before that; the class's name ends as its own did."""
    kind = type(module)
    if (kind, other) not in _classes:
        _classes[kind, other] = type(f"{other.__name__.lstrip('_')}{kind.__name__}", (other, kind), {})
    module.__class__ = _classes[kind, other]


def patch_elementwise_modules(model: nn.Module) -> None:
    """Have norms, activations and rotary embeddings compute tokens whose number does not show."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RotaryEmbedding"):
            _become(module, _ByPositions)
        elif isinstance(module, (FrozenNorm, nn.LayerNorm)) or _is_activation(module):
            _become(module, _ByTokens)
        elif kind.__name__.endswith("Norm"):
            _become(module, _OneByOne)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in ("torch.nn.modules.activation", "transformers.activations")


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

    def site(self, module: nn.Module, index: int, form: AttentionForm) -> RaggedLayer:
        """See `Pass`."""
        self._each.output_is_used = self.output_is_used
        return self._each.site(module, index, form)

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
