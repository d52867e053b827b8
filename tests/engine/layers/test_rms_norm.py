"""RMS norms as one node each, against the same modules by autograd, and what is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gradellm_engine.layers.rms_norm import FrozenNorm, replace_norms

Normal = Callable[..., Tensor]
WIDTH = 48
KINDS = [LlamaRMSNorm, Gemma2RMSNorm, GptOssRMSNorm]  # one of each form: Llama's, with 1 + weight, and in float32
SHAPES = [(1, 1, WIDTH), (1, 7, WIDTH), (2, 3, 4, WIDTH)]


def norms(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """One as it is, and one that is frozen."""
    torch.manual_seed(0)
    norm = kind(WIDTH, eps=1e-3).requires_grad_(False)
    nn.init.normal_(norm.get_parameter("weight"))
    frozen = copy.deepcopy(norm.to(dtype))
    replace_norms(frozen)
    return norm, frozen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_same_and_gradients_to_rounding(
    normal: Normal, kind: type[nn.Module], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    norm, frozen = norms(kind, dtype)
    assert isinstance(frozen, FrozenNorm)
    assert type(frozen).__name__ == f"Frozen{kind.__name__}"
    x, g = normal(0, *shape).to(dtype), normal(1, *shape).to(dtype)
    leaf, original_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = frozen(leaf), norm(original_leaf)
    assert output.grad_fn is not None
    assert output.grad_fn.name() == "_NormedBackward"
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(frozen(x), output)
    (gradient,) = torch.autograd.grad(output, leaf, g)
    (original_gradient,) = torch.autograd.grad(expected, original_leaf, g)
    assert gradient.dtype is dtype
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    assert (gradient - original_gradient).abs().max() <= tolerance * original_gradient.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_can_be_differentiated(normal: Normal, kind: type[nn.Module]) -> None:
    norm, frozen = norms(kind)
    x, g, h = (normal(seed, 1, 3, WIDTH).float() for seed in range(3))

    def second(module: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf), leaf, g, create_graph=True)
        (twice,) = torch.autograd.grad(gradient, leaf, h)
        return twice

    torch.testing.assert_close(second(frozen), second(norm), rtol=1e-4, atol=1e-4)


def test_transforms_of_functions_work(normal: Normal) -> None:
    norm, frozen = norms(LlamaRMSNorm)
    x, gs = normal(0, 1, 3, WIDTH).float(), normal(1, 5, 1, 3, WIDTH).float()
    leaf = x.clone().requires_grad_()
    output = frozen(leaf)
    together = torch.func.vmap(lambda g: torch.autograd.grad(output, leaf, g, retain_graph=True)[0])(gs)
    for g, gradient in zip(gs, together, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(output, leaf, g, retain_graph=True)[0])
    torch.testing.assert_close(torch.func.vmap(frozen)(gs), norm(gs))
    actual, reference = (torch.func.jvp(module, (x,), (gs[0],)) for module in (frozen, norm))
    torch.testing.assert_close(actual, reference)
    actual, reference = (torch.func.vjp(module, x)[1](gs[0]) for module in (frozen, norm))
    torch.testing.assert_close(actual, reference)


def test_replaces_only_plain_rms_norms() -> None:
    class OtherNorm(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            half: Tensor = super().forward(hidden_states) / 2
            return half

    placed = norms(LlamaRMSNorm)[0]
    placed.forward = placed.forward  # as accelerate's placement does
    modules = [
        OtherNorm(WIDTH).requires_grad_(False),
        CohereLayerNorm(WIDTH).requires_grad_(False),
        nn.LayerNorm(WIDTH).requires_grad_(False),
        norms(LlamaRMSNorm, torch.float64)[0],
        placed,
    ]
    model = nn.ModuleList([*modules, norms(LlamaRMSNorm)[0]])
    kinds = [type(module) for module in modules]
    state = torch.random.get_rng_state()
    replace_norms(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [type(module) for module in model][:-1] == kinds
    assert isinstance(model[-1], FrozenNorm)
