"""All of torch's private interface that the engine uses, each under a public, typed name.

A release of torch may change any of these. They are gathered here so that an upgrade has one file to check, with tests
of the behaviour that the engine relies on (`tests/engine/utils/test_torch_compat.py`). "Since" is the first release
with the interface in this form; the engine itself needs a later torch.

Functions that run in every layer are bound directly, without a wrapper: a Python call costs as much as the check.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # public in all but its module's name

softmax_backward: Callable[[Tensor, Tensor, int, torch.dtype], Tensor] = torch._softmax_backward_data
"""Softmax's own backward pass, fused: A (g - sum_j A_j g_j) from g, the result A, the dimension and A's dtype.

Autograd calls the same operator; it has no public name. Since torch 1.11.
"""

functorch_is_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether code runs inside `torch.func.vmap`, `grad`, `jvp` or another transform. Since torch 2.0.

A plain `torch.autograd.Function` cannot run there.
"""

is_batched_tensor: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor
"""Whether a tensor carries a batch dimension of `torch.func.vmap` that its shape does not show. Since torch 2.0."""

_PACKED_FOR_ROWS = 64  # the libraries ask for the number of input rows; their layout is the same for any number


def apply_to_physical(function: Callable[[Tensor], Tensor], batched: Tensor) -> Tensor:
    """`function` of the tensor below a `torch.func.vmap` batch dimension, batched again in the same way.

    For elementwise functions that have no batching rule, such as a sum over ranks. Since torch 2.0.
    """
    functorch = torch._C._functorch
    result: Tensor = functorch._add_batch_dim(
        function(functorch.get_unwrapped(batched)),
        functorch.maybe_get_bdim(batched),
        functorch.maybe_get_level(batched),
    )
    return result


def below_autograd() -> AbstractContextManager[None]:
    """A context in which operators skip autograd's dispatch keys altogether. Since torch 1.9.

    Stricter than `torch.no_grad`, under which every operator still checks whether it must be recorded: a fortieth of a
    decode step of a small model.
    """
    guard: AbstractContextManager[None] = torch._C._AutoDispatchBelowAutograd()
    return guard


def has_onednn_linear() -> bool:
    """Whether this build of torch has oneDNN and the operator that `onednn_linear` calls. Since torch 2.0."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b by oneDNN, which `torch.nn.functional.linear` does not choose for float32. Since torch 2.0.

    Inductor compiles linear layers to the same operator. [.., in], [out, in] or packed, [out] -> [.., out]
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result


def pack_for_onednn(weight: Tensor) -> Tensor:
    """A weight in the layout in which oneDNN multiplies it, for `onednn_linear`; an opaque copy. Since torch 2.0.

    [out, in], float32 or, on processors with the instructions for it, bfloat16
    """
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight, _PACKED_FOR_ROWS)
    return packed


def has_mkl_linear() -> bool:
    """Whether this build of torch has MKL and the operators of packed weights. Since torch 2.0."""
    is_built: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkl, "_mkl_linear")


def pack_for_mkl(weight: Tensor) -> Tensor:
    """A weight in the layout in which MKL multiplies it, an opaque copy. [out, in], float32. Since torch 2.0."""
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, _PACKED_FOR_ROWS)
    return packed


def mkl_linear(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b by MKL with a packed weight. Since torch 2.0.

    Inductor compiles linear layers with frozen weights to the same operator.
    [.., in], opaque, [out, in], [out] -> [.., out]
    """
    rows = x.numel() // x.shape[-1]
    result: Tensor = torch.ops.mkl._mkl_linear.default(x, packed, weight, bias, rows)
    return result


def has_forward_hooks(module: torch.nn.Module) -> bool:
    """Whether forward hooks are registered on a module itself. Since torch 0.2."""
    return bool(module._forward_hooks)


def allow_recompiles(count: int) -> None:
    """Let torch.compile specialise one function at least `count` times before it falls back to eager. Since torch 2.7.

    The limit is the process's; it is never lowered here.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, count)


def set_default_group_timeout(timeout: timedelta) -> None:
    """Change how long collectives of the default process group may take. Since torch 2.3.

    Releases without the public `torch.distributed.set_timeout` have a private function for it.
    """
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(timeout, dist.group.WORLD)


def changes_argument(operator: Any) -> bool:  # noqa: ANN401 (torch.ops' overloads have no public type)
    """Whether an operator writes to one of its arguments, by its schema. Since torch 1.13."""
    is_mutable: bool = operator._schema.is_mutable
    return is_mutable


def direct_call(operator: Any) -> Callable[..., Any]:  # noqa: ANN401
    """The compiled function of an operator overload of `torch.ops`, or the operator where it has none.

    Calling it skips the overload object's Python. Since torch 1.13.
    """
    function: Callable[..., Any] = getattr(operator, "_op", operator)
    return function
