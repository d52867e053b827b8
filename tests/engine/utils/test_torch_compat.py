"""Torch's private interface does what the engine expects of it, in the torch that is installed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gradellm_engine.utils import torch_compat
from gradellm_engine.utils.torch_compat import (
    TorchDispatchMode,
    allow_recompiles,
    apply_to_physical,
    below_autograd,
    changes_argument,
    direct_call,
    functorch_is_active,
    has_onednn_linear,
    is_batched_tensor,
    onednn_linear,
    set_default_group_timeout,
    softmax_backward,
)


def test_softmax_backward_is_autograds() -> None:
    torch.manual_seed(0)
    z, g = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    a = z.softmax(-1)
    (expected,) = torch.autograd.grad(a, z, g)
    a = a.detach()
    result = softmax_backward(g, a, -1, g.dtype)
    assert torch.equal(result, expected)
    torch.testing.assert_close(result, a * (g - (a * g).sum(-1, keepdim=True)))


def test_transforms_are_seen_while_they_run() -> None:
    seen: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(functorch_is_active())
        return x * x

    x = torch.ones(3)
    watched(x)
    torch.func.vmap(watched)(x)
    torch.func.jvp(watched, (x,), (x,))
    torch.func.vjp(watched, x)
    assert seen == [False, True, True, True]
    assert not functorch_is_active()


@pytest.mark.parametrize("dim", [0, 1])
def test_batched_tensors_are_seen_and_taken_whole(dim: int) -> None:
    shapes: list[torch.Size] = []

    def double(physical: Tensor) -> Tensor:
        assert not is_batched_tensor(physical)
        shapes.append(physical.shape)
        return 2 * physical

    def double_batched(x: Tensor) -> Tensor:
        assert is_batched_tensor(x)
        assert x.shape == (3,)
        return apply_to_physical(double, x)

    x = torch.arange(6.0).view(2, 3) if dim == 0 else torch.arange(6.0).view(3, 2)
    assert not is_batched_tensor(x)
    result = torch.func.vmap(double_batched, in_dims=dim, out_dims=dim)(x)
    assert torch.equal(result, 2 * x)
    assert shapes == [x.shape]


def test_below_autograd_nothing_is_recorded() -> None:
    x = torch.ones(3, requires_grad=True)
    with below_autograd():
        y = x * 2
    assert y.grad_fn is None
    assert torch.equal(y, torch.full((3,), 2.0))
    assert (x * 2).grad_fn is not None


@pytest.mark.parametrize("shape", [(1, 3, 40), (7, 40)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_onednn_linear_is_a_linear_layer_where_torch_has_it(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(24, 40), torch.randn(24) if has_bias else None
    assert has_onednn_linear() <= torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if has_onednn_linear():
        torch.testing.assert_close(onednn_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
        columns = weight.t().contiguous().t()
        torch.testing.assert_close(onednn_linear(x, columns, bias), torch.nn.functional.linear(x, weight, bias))


def test_the_recompile_limit_is_only_raised() -> None:
    config = torch._dynamo.config
    before = config.recompile_limit
    try:
        allow_recompiles(before + 5)
        assert config.recompile_limit == before + 5
        allow_recompiles(1)
        assert config.recompile_limit == before + 5
    finally:
        config.recompile_limit = before


def test_the_timeout_of_the_default_group_is_changed(tmp_path: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, timeout=timedelta(minutes=9)
    )
    try:
        set_default_group_timeout(timedelta(minutes=2))
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
        assert backend.options._timeout == timedelta(minutes=2)
    finally:
        dist.destroy_process_group()


def test_operators_that_write_to_an_argument() -> None:
    aten = torch.ops.aten
    assert changes_argument(aten.add_.Tensor)
    assert changes_argument(aten.copy_.default)
    assert not changes_argument(aten.add.Tensor)


def test_direct_calls_are_the_same_operator() -> None:
    x = torch.arange(3.0)
    operator = torch.ops.aten.mul.Tensor
    assert torch.equal(direct_call(operator)(x, x), x * x)
    assert direct_call(operator) is not operator
    assert direct_call(len) is len


def test_a_dispatch_mode_sees_operators_below_autograd() -> None:
    operators: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
            operators.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    with Watch():  # type: ignore[no-untyped-call]
        torch.autograd.grad((x * 3).sum(), x)
    assert "aten.mul.Tensor" in operators[0]
    assert any("expand" in name for name in operators)  # of the backward pass


def test_names_that_run_in_every_layer_are_bound_without_a_wrapper() -> None:
    for name in ("softmax_backward", "functorch_is_active", "is_batched_tensor"):
        assert not hasattr(vars(torch_compat)[name], "__code__"), name
