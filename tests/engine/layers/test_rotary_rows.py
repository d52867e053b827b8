"""The rotary embedding by rows, against the families' own functions: the same to the last bit."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from gradellm_engine.layers import rotary
from gradellm_engine.layers.rotary import (
    NAME,
    Rotate,
    fused_autograd_node,
    rotated,
    rotates_halves,
    supports_row_layout,
)

Shape = tuple[int, int, int, int, int]  # texts, tokens, query heads, key heads, width


def own_function(family: str) -> Rotate:
    rotate = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), NAME)
    its: Rotate = getattr(rotate, "__wrapped__", rotate)
    return its


def drawn(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, G, D = shape
    torch.manual_seed(0)
    q, k = (torch.randn(B, T, heads, D).transpose(1, 2) for heads in (H, G))
    return q, k, torch.randn(1, T, D), torch.randn(1, T, D)


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", True), ("qwen3", True), ("cohere", False), ("glm", False), ("gpt_oss", False)]
)
def test_families_that_rotate_halves_are_known(family: str, expected: bool) -> None:
    assert rotates_halves(own_function(family)) is expected


def test_a_function_that_wants_to_know_more_is_none_of_them() -> None:
    assert not rotates_halves(lambda q, k, cos, sin, section: (q, k))


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 2, 8), (3, 7, 2, 2, 4), (1, 50, 8, 4, 32), (2, 3, 3, 1, 6), (4, 1, 2, 1, 64)]
)
def test_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    monkeypatch.setattr(rotary, "MIN_NUMBERS", 1)
    q, k, cos, sin = drawn(shape)
    assert supports_row_layout(q, k, cos, sin)
    rotate = own_function("llama")
    with torch.no_grad():
        ours, theirs = fused_autograd_node(rotate)(q, k, cos, sin), rotate(q, k, cos, sin)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert torch.equal(rotated(q, cos, sin), theirs[0])


def test_all_else_is_left_to_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "MIN_NUMBERS", 1)
    q, k, cos, sin = drawn((2, 5, 4, 2, 8))
    assert not supports_row_layout(q.contiguous(), k, cos, sin)
    assert not supports_row_layout(q.double(), k.double(), cos.double(), sin.double())
    assert not supports_row_layout(q, k, cos.repeat(2, 1, 1), sin.repeat(2, 1, 1))
    assert not supports_row_layout(q, k, cos[..., :4], sin[..., :4])
    monkeypatch.setattr(rotary, "MIN_NUMBERS", q.numel() + 1)
    assert not supports_row_layout(q, k, cos, sin)
