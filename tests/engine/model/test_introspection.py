"""A model's layout, as one probed token shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import UnsupportedModelError
from gradellm_engine.model.transformers_model import TransformersModel


@pytest.fixture
def load(model_path: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda family: AutoModelForCausalLM.from_pretrained(model_path(family), dtype=torch.float32)


def test_layers_in_order(load: Callable[[str], Any]) -> None:
    model = load("llama")
    runner = TransformersModel(model)
    assert runner.blocks == list(model.model.layers)
    assert [(s.num_key_value_heads, s.key_width, s.value_width) for s in runner.layer_shapes] == [(2, 16, 16)] * 3
    assert {shape.dtype for shape in runner.layer_shapes} == {torch.float32}
    assert [shape.width for shape in runner.rotaries] == [16]
    assert runner.rotary_of == {0: 0, 1: 0, 2: 0}


def test_values_of_another_width(load: Callable[[str], Any]) -> None:
    shapes = TransformersModel(load("deepseek_v3")).layer_shapes
    assert [(s.num_key_value_heads, s.key_width, s.value_width) for s in shapes] == [(4, 16, 12)] * 3


@pytest.mark.parametrize(
    ("family", "num_rotaries", "rotary_of"),
    [("gpt2", 0, {}), ("gemma3_text", 2, {0: 0, 1: 1, 2: 0})],
)
def test_rotary_embeddings(
    load: Callable[[str], Any], family: str, num_rotaries: int, rotary_of: dict[int, int]
) -> None:
    runner = TransformersModel(load(family))
    assert len(runner.rotaries) == num_rotaries
    assert runner.rotary_of == rotary_of


def test_a_layer_with_attention_of_its_own_is_refused(load: Callable[[str], Any]) -> None:
    def forward(hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None

    model = load("llama")
    model.model.layers[1].self_attn.forward = forward
    with pytest.raises(UnsupportedModelError, match="2 of 3 layers go through Transformers' AttentionInterface"):
        TransformersModel(model)


def test_a_model_without_a_head_is_refused(load: Callable[[str], Any]) -> None:
    model = load("llama")
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match="has no language-model head"):
        TransformersModel(model)
