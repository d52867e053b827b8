"""Tensor-parallel linear layers: local shards with an all-reduce in the forward or the backward pass.

Transformers shards weights as distributed tensors and, wherever a gradient may be needed, runs every operation on them
through the DTensor dispatcher. The weights are frozen here, and only gradients by inputs are needed: a shard is a plain
layer with one all-reduce.

    column-parallel   y_r = x W_r^T + b_r                   dl/dx = sum over ranks of dl/dy_r W_r
    row-parallel      y = b + sum over ranks of x_r W_r^T   dl/dx_r = dl/dy W_r

Column-parallel layers of the same x share one all-reduce in the backward pass. Megatron-LM (Shoeybi et al. 2019) calls
the two functions f and g, copy to and reduce from the model-parallel region.
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
    """Turn the column- and row-parallel layers of `model` into plain layers of this rank's shard.

    Modules sharded in another way (experts, the head, the embedding) stay as Transformers has them.

    Returns:
        The function that the column-parallel layers share; `clear` it after each pass.
    """
    from torch.distributed.tensor import DTensor

    copy_to_parallel = CopyToParallel(ranks)
    for name, module in model.named_modules():
        style = model.tp_plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if type(module) is not nn.Linear or not isinstance(module.weight, DTensor) or style not in _COLUMNS | _ROWS:
            continue
        bias = module.bias
        module.weight = _local(module.weight)
        module.out_features, module.in_features = module.weight.shape
        module.register_parameter("bias", None if bias is None else _local(bias))
        vars(module).pop("forward", None)
        if style in _COLUMNS:
            module.register_forward_pre_hook(lambda layer, args: (copy_to_parallel.of(args[0]), *args[1:]))
        else:
            module.register_forward_hook(ReduceFromParallel(ranks, module.bias))
            module.register_parameter("bias", None)
    return copy_to_parallel


def _local(sharded: Tensor) -> nn.Parameter:
    """The local shard of a distributed tensor."""
    local: Tensor = sharded.to_local()  # type: ignore[attr-defined]
    return nn.Parameter(local.detach(), requires_grad=False)


class CopyToParallel:
    """The input of column-parallel layers: identity forward, all-reduce backward."""

    def __init__(self, ranks: ProcessGroup) -> None:
        self._ranks = ranks
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, x: Tensor) -> Tensor:
        """`x`, as one graph node for all layers that get the same x in succession."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        if self._last is None or self._last[0] is not x:
            self._last = (x, _CopyToParallelRegion.apply(x, self._ranks))  # type: ignore[no-untyped-call]
        return self._last[1]

    def clear(self) -> None:
        """After a pass: drop the last node, which holds its whole graph."""
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
    """Forward hook of a row-parallel layer: all-reduce forward, identity backward."""

    def __init__(self, ranks: ProcessGroup, bias: Tensor | None) -> None:
        self._ranks, self._bias = ranks, bias

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the sum over ranks of `output`, plus the bias."""
        y: Tensor = _ReduceFromParallelRegion.apply(output, self._ranks)  # type: ignore[no-untyped-call]
        return y if self._bias is None else y + self._bias


class _ReduceFromParallelRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, ranks: ProcessGroup) -> Tensor:  # noqa: ANN401
        return ranks.all_reduce_sum(share.clone())  # the layer's output may be cached

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradients[0], None


def local_bytes(model: nn.Module) -> int:
    """Bytes of the weights that this process holds; tied ones count once."""
    local = [getattr(parameter, "_local_tensor", parameter) for parameter in model.parameters()]  # of a DTensor
    storages = [parameter.untyped_storage() for parameter in local]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
