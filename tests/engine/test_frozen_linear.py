"""Frozen linear layers against those of PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import frozen_linear
from gradellm_engine.frozen_linear import MIN_WEIGHTS, FrozenLinear, current_outputs, freeze_linears, has_onednn

Normal = Callable[..., Tensor]

LARGE = MIN_WEIGHTS // 1024  # outputs of a layer of 1024 inputs from which on oneDNN computes it


def linear(num_outputs: int = LARGE, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1024, num_outputs, bias=bias, dtype=dtype).requires_grad_(False)


def frozen(layer: nn.Linear) -> FrozenLinear:
    freeze_linears(layer)
    assert isinstance(layer, FrozenLinear)
    return layer


@pytest.mark.parametrize("num_outputs", [LARGE, LARGE - 1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 5), (1, 100)])
def test_product_and_gradient_are_those_of_linear(
    normal: Normal, bias: bool, shape: tuple[int, int], num_outputs: int
) -> None:
    exact = linear(num_outputs, bias, torch.float64)
    layer = linear(num_outputs, bias)
    exact.load_state_dict(layer.state_dict())
    layer = frozen(layer)
    assert layer.onednn_rows == (2 if num_outputs == LARGE and has_onednn() else None)
    x, g = normal(0, *shape, layer.in_features), normal(1, *shape, layer.out_features)
    results = []
    for module, dtype in ((layer, torch.float32), (exact, torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        y = module(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, g.to(dtype))
        with torch.no_grad():
            assert torch.equal(module(leaf), y)
        results.append((y.double(), gradient.double()))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


class OutputsOf(dict[nn.Module, Tensor]):
    """What layers give in one call, given to them in the next."""

    def known(self, layer: nn.Module) -> Tensor | None:
        return self.get(layer)

    def note(self, layer: nn.Module, output: Tensor) -> None:
        self[layer] = output.detach()


@pytest.mark.parametrize("num_outputs", [LARGE, LARGE - 1])
def test_a_known_output_is_given_and_has_the_same_gradient(normal: Normal, num_outputs: int) -> None:
    layer, outputs = frozen(linear(num_outputs, bias=True)), OutputsOf()
    x = normal(0, 1, 3, layer.in_features).float().requires_grad_()
    g = normal(1, 1, 3, layer.out_features).float()
    token = current_outputs.set(outputs)
    try:
        y = layer(x)
        (gradient,) = torch.autograd.grad(y, x, g)
        outputs[layer] = known = torch.randn_like(y)  # so that it shows
        again = layer(x)
        assert torch.equal(again, known)
        assert torch.equal(torch.autograd.grad(again, x, g)[0], gradient)
        assert torch.equal(layer(x.detach()), known)
        assert torch.equal(layer(x[:, :2]), frozen(layer).product(x[:, :2]))  # not of these tokens
    finally:
        current_outputs.reset(token)
    assert torch.equal(layer(x), y)


def test_takes_over_only_plain_layers_and_uses_onednn_where_it_is_faster() -> None:
    class Quantised(nn.Linear):
        pass

    placed = linear()
    placed.forward = placed.forward  # type: ignore[method-assign] # as accelerate's placement does
    others = [Quantised(1024, 1024), placed]
    small = [nn.Linear(8, 8), linear(dtype=torch.bfloat16), linear(dtype=torch.float64)]
    model = nn.ModuleList([*others, *small, linear()])
    freeze_linears(model)
    assert [type(module) is FrozenLinear for module in model] == [False] * 2 + [True] * 4
    assert [getattr(module, "onednn_rows", 0) for module in model[2:]] == [None] * 3 + [2 if has_onednn() else None]


def test_does_without_onednn_where_pytorch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "has_onednn", lambda: False)
    assert frozen(linear()).onednn_rows is None
