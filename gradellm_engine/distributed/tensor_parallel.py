"""Linear layers of which each rank holds a share.

Transformers shares weights out and, wherever a gradient may be asked for, runs every operation on them through the
dispatcher of distributed tensors. Here weights never change, and only gradients by inputs are wanted: a share is then a
plain layer like any other, with a sum over ranks behind it or on the way back.

    columns   y_r = x W_r^T + b_r               dl/dx = sum over ranks of dl/dy_r W_r
    rows      y = b + sum over ranks of x_r W_r^T    dl/dx_r = dl/dy W_r

Layers of the same x share one sum on the way back (Shoeybi et al. 2019 call the two functions f and g).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradellm_engine.distributed.process_group import ProcessGroup

_COLUMNS, _ROWS = frozenset({"colwise", "packed_colwise"}), frozenset({"rowwise"})


def shard_to_local_linear(model: PreTrainedModel, ranks: ProcessGroup) -> CopyToParallel:
    """Turn the layers of `model` that are shared by columns or rows into plain ones of this rank's share.

    What is shared in another way (experts, the head, the embedding) stays as Transformers has it.
    """
    from torch.distributed.tensor import DTensor

    fanned_out = CopyToParallel(ranks)
    for name, module in model.named_modules():
        style = model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if type(module) is not nn.Linear or not isinstance(module.weight, DTensor) or style not in _COLUMNS | _ROWS:
            continue
        bias = module.bias
        module.weight = _own(module.weight)
        module.out_features, module.in_features = module.weight.shape
        module.register_parameter("bias", None if bias is None else _own(bias))
        vars(module).pop("forward", None)
        if style in _COLUMNS:
            module.register_forward_pre_hook(lambda layer, args: (fanned_out.of(args[0]), *args[1:]))
        else:
            module.register_forward_hook(ReduceFromParallel(ranks, module.bias))
            module.register_parameter("bias", None)
    return fanned_out


def _own(shared: Tensor) -> nn.Parameter:
    """The share of a distributed tensor that is here."""
    local: Tensor = shared.to_local()  # type: ignore[attr-defined]
    return nn.Parameter(local.detach(), requires_grad=False)


class CopyToParallel:
    """What goes to layers that are shared by columns: itself, with the sum over ranks of what comes back."""

    def __init__(self, ranks: ProcessGroup) -> None:
        self._ranks = ranks
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, x: Tensor) -> Tensor:
        """The same for all layers that get the same x one after the other."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        if self._last is None or self._last[0] is not x:
            self._last = (x, _CopyToParallelRegion.apply(x, self._ranks))  # type: ignore[no-untyped-call]
        return self._last[1]

    def forget(self) -> None:
        """After a pass: what was given last holds its whole graph."""
        self._last = None


class _CopyToParallelRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: ProcessGroup) -> Tensor:  # noqa: ANN401
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.ranks.all_reduce_sum(gradients[0].clone()), None


class ReduceFromParallel:
    """A hook behind a layer that is shared by rows."""

    def __init__(self, ranks: ProcessGroup, bias: Tensor | None) -> None:
        self._ranks, self._bias = ranks, bias

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the sum over ranks of `output`, plus the bias."""
        y: Tensor = _ReduceFromParallelRegion.apply(output, self._ranks)  # type: ignore[no-untyped-call]
        return y if self._bias is None else y + self._bias


class _ReduceFromParallelRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: ProcessGroup) -> Tensor:  # noqa: ANN401
        return ranks.all_reduce_sum(share.clone())  # products may be kept, and used again

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradients[0], None
