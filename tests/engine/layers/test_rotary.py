"""The rotary embedding as one node, against the same function by autograd."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.layers.rotary import NAME, Rotate, fused_autograd_node, replace_rotary

Normal = Callable[..., Tensor]
# Halves rotated, neighbours rotated, a part of the width alone, and cosines of half the width.
FAMILIES = ["llama", "cohere", "glm", "gpt_oss"]
WIDTH, TOKENS = 16, 3


def rotary(family: str) -> tuple[Rotate, Tensor, Tensor]:
    """The family's function, with cosines and sines of some tokens."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotate = getattr(module, NAME)
    angles = torch.linspace(0, 3, TOKENS * WIDTH // 2).view(1, TOKENS, -1)
    if family == "cohere":
        angles = angles.repeat_interleave(2, -1)
    elif family != "gpt_oss":
        angles = torch.cat((angles, angles), -1)
    if family == "glm":
        angles = angles[..., : WIDTH // 2]
    return getattr(rotate, "__wrapped__", rotate), 1.5 * angles.cos(), 1.5 * angles.sin()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_autograds(normal: Normal, family: str) -> None:
    rotate, cos, sin = rotary(family)
    q, k = normal(0, 1, 4, TOKENS, WIDTH).float(), normal(1, 1, 2, TOKENS, WIDTH).float()
    gradients = [normal(2 + i, *x.shape).float() for i, x in enumerate((q, k))]

    def results(function: Rotate) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        outputs = function(*leaves, cos, sin)
        return outputs, torch.autograd.grad(outputs, leaves, gradients)

    ours, theirs = results(fused_autograd_node(rotate)), results(rotate)
    assert ours[0][0].grad_fn is not None
    assert ours[0][0].grad_fn.name() == "_RotatedBackward"
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1])


def test_all_else_is_left_to_autograd(normal: Normal) -> None:
    rotate, cos, sin = rotary("llama")
    ours = fused_autograd_node(rotate)
    q, k = normal(0, 1, 4, TOKENS, WIDTH).float(), normal(1, 1, 2, TOKENS, WIDTH).float()
    leaf = q.clone().requires_grad_()

    def is_ours(*args: Tensor, **kwargs: int) -> bool:
        made = ours(*args, **kwargs)[0].grad_fn
        return made is not None and made.name() == "_RotatedBackward"

    assert is_ours(leaf, leaf, cos, sin)
    assert not is_ours(q, k, cos, sin)
    assert not is_ours(leaf, k, cos, sin)
    assert not is_ours(leaf, leaf, cos.clone().requires_grad_(), sin)
    assert not is_ours(leaf, leaf, cos, sin, unsqueeze_dim=1)
    assert not is_ours(leaf.double(), leaf.double(), cos, sin)
    tangents = tuple(torch.func.jvp(f, (q, k, cos, sin), (k[:, :1].expand_as(q), k, cos, sin)) for f in (ours, rotate))
    torch.testing.assert_close(*tangents)


def test_it_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(nn.Module):
        pass

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    place = SimpleNamespace(**{NAME: rotate})
    monkeypatch.setitem(sys.modules, "family_of_a_test", place)
    Layer.__module__ = "family_of_a_test"
    model = nn.ModuleList([Layer(), Layer()])
    replace_rotary(model)
    once = getattr(place, NAME)
    assert once.__wrapped__ is rotate
    replace_rotary(model)
    assert getattr(place, NAME) is once
