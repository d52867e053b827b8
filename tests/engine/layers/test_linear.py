"""Frozen linear layers against PyTorch's in float64: single, fused, and with cached outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.layers.gemm import GemmWeight, Kernel
from gradellm_engine.layers.linear import (
    FrozenLinear,
    current_output_cache,
    fuse_shared_input_linears,
    pack_weights,
    replace_linears,
)
from gradellm_engine.layers.packing import best_packing

Normal = Callable[..., Tensor]

IN = 1024
SMALL, LARGE = 32, 512  # outputs of a layer that torch's default computes, and of one that other kernels do


def linear(num_outputs: int = LARGE, bias: bool = False) -> nn.Linear:
    torch.manual_seed(num_outputs)
    return nn.Linear(IN, num_outputs, bias=bias).requires_grad_(False)


class Layers(nn.Module):
    """Layers that get the same input, and what follows on them."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


def frozen(*layers: nn.Linear, joined: bool = True) -> Layers:
    model = Layers(*layers)
    replace_linears(model)
    if joined:
        fuse_shared_input_linears(model, lambda: model(torch.zeros(1, 1, IN)))
    return model


def results(model: Layers, x: Tensor, gradients: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    leaf = x.clone().requires_grad_()
    outputs = model(leaf)
    (gradient,) = torch.autograd.grad(outputs, leaf, list(gradients))
    return outputs, gradient


@pytest.mark.parametrize("sizes", [(SMALL,), (LARGE,), (LARGE, SMALL), (LARGE, 2 * LARGE, LARGE)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 5), (1, 100)])
def test_outputs_and_gradients_are_those_of_linear(
    normal: Normal, bias: bool, shape: tuple[int, int], sizes: tuple[int, ...]
) -> None:
    exact = Layers(*(linear(size, bias).double() for size in sizes))
    model = frozen(*(linear(size, bias) for size in sizes))
    x, gs = normal(0, *shape, IN), [normal(1 + i, *shape, size) for i, size in enumerate(sizes)]
    outputs, gradient = results(model, x.float(), [g.float() for g in gs])
    exact_outputs, exact_gradient = results(exact, x, gs)
    with torch.no_grad():
        for plain, explained in zip(model(x.float()), outputs, strict=True):
            assert torch.equal(plain, explained)
    for actual, reference in zip([*outputs, gradient], [*exact_outputs, exact_gradient], strict=True):
        assert (actual - reference).abs().max() <= 1e-5 * reference.abs().max()


def joints(model: Layers) -> list[object]:
    return [layer.fused_group for layer in model.layers]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outputs each product had."""
    sizes: list[int] = []
    product = GemmWeight.product

    def counted(self: GemmWeight, x: Tensor) -> Tensor:
        sizes.append(len(self.weight))
        return product(self, x)

    monkeypatch.setattr(GemmWeight, "product", counted)
    return sizes


needs_kernels = pytest.mark.skipif(
    GemmWeight(torch.empty(LARGE, IN), None).kernel(torch.empty(1, 1, IN)) is Kernel.DEFAULT,
    reason="this build of torch has neither MKL nor oneDNN",
)


@needs_kernels
def test_linears_with_a_shared_input_are_one_gemm(normal: Normal, computed: list[int]) -> None:
    model = frozen(linear(), linear(2 * LARGE))
    x = normal(0, 1, 1, IN).float()
    computed.clear()
    first = model(x)
    assert computed == [3 * LARGE]
    again = model(x)  # the cache is empty once all layers have read it
    assert computed == [3 * LARGE] * 2
    assert all(torch.equal(actual, expected_output) for actual, expected_output in zip(first, again, strict=True))
    weights: list[Tensor] = [layer.weight for layer in model.layers]  # type: ignore[misc]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1  # of one memory


@needs_kernels
def test_an_input_that_has_been_written_to_is_another(normal: Normal) -> None:
    model = frozen(linear(), linear(2 * LARGE))
    left, right = list(model.layers)
    x = normal(0, 1, 1, IN).float()
    left(x)
    expected: Tensor = frozen(linear(2 * LARGE))(x + 1)[0]
    torch.testing.assert_close(right(x.add_(1)), expected)
    torch.testing.assert_close(right(x), expected)  # nor is it taken twice
    torch.testing.assert_close(left(x), frozen(linear())(x)[0])


@needs_kernels
def test_fuses_only_linears_with_a_shared_input() -> None:
    assert joints(frozen(linear(), linear(2 * LARGE, bias=True))) == [None, None]
    assert joints(frozen(linear(SMALL), linear(2 * SMALL))) == [None, None]
    shared = linear()
    assert joints(frozen(shared, shared)) == [None, None]

    class Chain(Layers):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x.clone()) for layer in self.layers]

    chain = Chain(linear(), linear(2 * LARGE))
    replace_linears(chain)
    fuse_shared_input_linears(chain, lambda: chain(torch.zeros(1, 1, IN)))
    assert joints(chain) == [None, None]
    together = joints(frozen(linear(), linear(2 * LARGE), linear(3 * LARGE)))
    assert together[0] is not None
    assert together == [together[0]] * 3


class OutputsOf(dict[nn.Module, Tensor]):
    """A cache that returns in the next call what layers put in this one."""

    def put(self, layer: nn.Module, output: Tensor) -> None:
        self[layer] = output.detach()

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        self.update(outputs)

    def keep_last(self, num_tokens: int) -> None:
        raise AssertionError("no layer is computed for some tokens alone")


@pytest.mark.parametrize("sizes", [(LARGE,), (SMALL,), (LARGE, 2 * LARGE)])
def test_cached_outputs_are_returned_and_have_the_same_gradient(
    normal: Normal, sizes: tuple[int, ...], computed: list[int]
) -> None:
    model, outputs = frozen(*(linear(size, bias=True) for size in sizes)), OutputsOf()
    x, gs = normal(0, 1, 3, IN).float(), [normal(1, 1, 3, size).float() for size in sizes]
    token = current_output_cache.set(outputs)
    try:
        first, gradient = results(model, x, gs)
        for layer in model.layers:
            outputs[layer] = torch.randn_like(outputs[layer])  # so that it shows
        expected = [outputs[layer] for layer in model.layers]
        computed.clear()
        again, cached_gradient = results(model, x, gs)
        assert not computed
        assert all(
            torch.equal(actual, expected_output) for actual, expected_output in zip(again, expected, strict=True)
        )
        assert torch.equal(cached_gradient, gradient)
        assert all(
            torch.equal(actual, expected_output) for actual, expected_output in zip(model(x), expected, strict=True)
        )
        shorter = model(x[:, :2])  # not of these tokens
        assert computed
        assert all(output.shape[1] == 2 for output in shorter)
    finally:
        current_output_cache.reset(token)
    assert all(torch.equal(actual, expected_output) for actual, expected_output in zip(model(x), first, strict=True))


class Small(nn.Module):
    """Two layers of one input, another, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(512, 512, bias=False), nn.Linear(512, 256, bias=False)
        self.o, self.head = nn.Linear(512, 512), nn.Linear(512, 1024)

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, 512] -> [1, T, 1024]"""
        q, k = self.q(x), self.k(x)
        output: Tensor = self.head(self.o(q) + k.repeat(1, 1, 2))
        return output


@pytest.mark.skipif(best_packing(torch.float32) is None, reason="packed weights are no faster here")
@pytest.mark.parametrize("num_bytes", [0, 4 * 512 * 768, 2**30])
def test_weights_are_packed_as_far_as_memory_goes(num_bytes: int) -> None:
    torch.manual_seed(0)
    model = Small().requires_grad_(False)
    x = torch.randn(1, 5, 512, requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    replace_linears(model)
    fuse_shared_input_linears(model, lambda: model(x))
    patches = pack_weights(model, model.head, num_bytes)
    assert [patch.module for patch in patches] == {0: [], 2**30: ["q", "o", "head"]}.get(num_bytes, ["q"])
    output = model(x)
    (again,) = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, gradient, rtol=1e-4, atol=1e-4)
    for patch in patches:
        patch.undo()
    assert all(layer.gemm_weight.kernel(x) is not Kernel.PACKED for layer in (model.o, model.head))  # type: ignore[operator, union-attr]


def test_takes_over_only_plain_layers() -> None:
    class Quantised(nn.Linear):
        pass

    placed = linear()
    placed.forward = placed.forward  # type: ignore[method-assign] # as accelerate's placement does
    model = nn.ModuleList([Quantised(IN, LARGE), placed, nn.Linear(8, 8), linear().bfloat16(), linear()])
    replace_linears(model)
    assert [type(module) is FrozenLinear for module in model] == [False] * 2 + [True] * 3
