"""Batch-invariant execution: a token's results do not depend on batch composition, to the last bit.

Floating-point sums depend on the order of their terms, and libraries choose the order by the size of the whole operand:
a row's result differs with the number of rows in the batch. A token that was decoded alone would get other last bits
in a prefill chunk, and every layer, and the gradient of every layer, amplifies the difference. Three mechanisms fix the
order:

- GEMMs (`gradellm_engine.layers.invariant_gemm`). Libraries have a few orders of summation, each for some numbers of
  rows. Rows are padded to numbers that share one order; which these are is found by trial for each shape of weight,
  with all numbers of rows up to a block's, at load.
- Attention (`gradellm_engine.passes.invariant.PerTokenPass`). Each query attends by itself to its own prefix: the same
  calls with the same shapes as in a decode step of one sequence. KV slots begin at aligned addresses.
- All else (`patch_elementwise_modules`). PyTorch computes whole vectors and the last few elements by different
  functions unless they are sums or products, and splits large tensors among threads. So norms, activations and rotary
  embeddings take as many tokens at a time as are whole vectors in one thread; one at a time where a token is not whole
  vectors.

Results are reproducible on one machine. Another processor, number of threads or release of PyTorch may have another
order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradellm_engine.layers.module_patch import Patch, mix_in_class
from gradellm_engine.layers.rms_norm import FrozenNorm

if TYPE_CHECKING:
    pass

NAME = "batch-invariant"
DTYPES = (torch.float32, torch.float64)

_WHOLE_VECTORS = 32  # float32 numbers: two vectors of the widest kind, as loops are unrolled
_ONE_THREAD = 2**15  # elements from which PyTorch splits an operation among threads


class _ByTokens(nn.Module):
    """Mixin for modules that map each token by itself.

    [1, T, ..] -> [1, T, ..], or [T, width] -> [T, width] in OPT.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 (passed on)
        original = super().forward
        dim = 0 if x.dim() == 2 else 1
        count = self._tokens_at_a_time(x.shape[dim + 1 :])
        if x.shape[dim] <= count or (dim and x.shape[0] != 1):
            # A view, as blocks are: the gradients of the module's own uses of x are summed first.
            output: Tensor = original(x.view_as(x), *args, **kwargs)
            return output
        return torch.cat([original(block, *args, **kwargs) for block in torch.split(x, count, dim)], dim=dim)

    @staticmethod
    def _tokens_at_a_time(shape: torch.Size) -> int:
        """How many tokens of this shape are whole vectors in one thread; 1 where a token is not."""
        return 1 if not shape or shape[-1] % _WHOLE_VECTORS else max(1, (_ONE_THREAD - 1) // shape.numel())


class _OneByOne(_ByTokens):
    """Mixin for modules whose intermediate results have one number a token, which never fills a vector register."""

    @staticmethod
    def _tokens_at_a_time(shape: torch.Size) -> int:
        return 1


class _ByPositions(nn.Module):
    """Mixin for rotary embeddings: cosines and sines [1, T, width] of positions [1, T], one position at a time."""

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        original = super().forward
        if position_ids.shape[0] != 1 or position_ids.shape[1] == 1:
            output: tuple[Tensor, Tensor] = original(x, position_ids, *args, **kwargs)
            return output
        each = [original(x, position, *args, **kwargs) for position in torch.split(position_ids, 1, 1)]
        cosines, sines = zip(*each, strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)


def patch_elementwise_modules(model: nn.Module) -> list[Patch]:
    """Have norms, activations and rotary embeddings compute tokens in blocks whose size does not change results."""
    patches = []
    for name, module in model.named_modules():
        kind = type(module)
        mixin: type[nn.Module] | None = None
        if kind.__name__.endswith("RotaryEmbedding"):
            mixin = _ByPositions
        elif isinstance(module, (FrozenNorm, nn.LayerNorm)) or _is_activation(module):
            mixin = _ByTokens
        elif kind.__name__.endswith("Norm"):
            mixin = _OneByOne
        if mixin is not None:
            patches.append(mix_in_class(name, module, mixin, mixin.__name__.lstrip("_")))
    return patches


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in ("torch.nn.modules.activation", "transformers.activations")
