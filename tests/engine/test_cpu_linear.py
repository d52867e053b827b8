"""Linear layers by oneDNN against those of PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import cpu_linear
from gradellm_engine.cpu_linear import MIN_WEIGHTS, OneDnnLinear, has_onednn, use_onednn

Normal = Callable[..., Tensor]

pytestmark = pytest.mark.skipif(not has_onednn(), reason="PyTorch was built without oneDNN")


def large(bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(1024, MIN_WEIGHTS // 1024, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 5), (1, 100)])
def test_product_and_gradient_are_those_of_linear(normal: Normal, bias: bool, shape: tuple[int, int]) -> None:
    layer = large(bias)
    exact = large(bias, torch.float64)
    exact.load_state_dict(layer.state_dict())
    use_onednn(layer)
    assert type(layer) is OneDnnLinear
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


def test_takes_over_only_what_it_computes_faster() -> None:
    class Quantised(nn.Linear):
        pass

    placed = large()
    placed.forward = placed.forward  # type: ignore[method-assign] # as accelerate's placement does
    others = [nn.Linear(8, 8), large(dtype=torch.bfloat16), large(dtype=torch.float64), Quantised(1024, 1024), placed]
    model = nn.ModuleList([*others, large()])
    use_onednn(model)
    assert [type(module) is OneDnnLinear for module in model] == [False] * len(others) + [True]


def test_leaves_all_as_it_is_where_pytorch_has_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "has_onednn", lambda: False)
    model = large()
    use_onednn(model)
    assert type(model) is nn.Linear
