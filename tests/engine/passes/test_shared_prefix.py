"""Sequences after a shared prefix: the last layer and the LM head compute only the rows that are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention
from support.kv_fixtures import prefilled_slot
from support.tiny_models import save_random_model


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = save_random_model(tmp_path_factory.mktemp("llama"), "llama", seed=1, initializer_range=0.15)
    return Engine.load(str(path), dtype="float32", threads=1).model.runner


def test_the_last_layer_computes_one_row_a_sequence(runner: ModelRunner) -> None:
    """The last row of each sequence; keys and values are still computed from all rows."""
    slot = prefilled_slot(runner, [60, 61, 62])
    embeddings = runner.embed(range(70, 82)).view(3, 4, -1)
    rows: dict[str, list[int]] = {}

    def note(name: str) -> Any:
        return lambda module, args, output: rows.setdefault(name, []).append(output.shape[:-1].numel())

    names = {"layers.1.mlp.up_proj": 12, "layers.2.mlp.up_proj": 3, "layers.2.self_attn.o_proj": 3, "lm_head": 3}
    modules = {end: module for name, module in runner.named_modules() for end in names if name.endswith(end)}
    hooks = [module.register_forward_hook(note(end)) for end, module in modules.items()]
    found = runner.last_logits(embeddings, [4, 2, 1], SharedPrefixAttention(slot, 3))
    for hook in hooks:
        hook.remove()
    assert rows == {name: [count] for name, count in names.items()}
    alone = [
        runner.last_logits(embeddings[i : i + 1, :length], [length], SharedPrefixAttention(slot, 3))[0]
        for i, length in enumerate([4, 2, 1])
    ]
    expected = runner.logits([SequenceChunk.new(prefilled_slot(runner, [60, 61, 62]), [70, 71, 72, 73])])[-1]
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert not runner.blocks[-1]._forward_pre_hooks
    slot.close()


def test_the_last_layer_makes_queries_of_one_row_a_sequence(runner: ModelRunner) -> None:
    slot = prefilled_slot(runner, [60, 61, 62])
    attention: Any = runner.blocks[-1].self_attn
    rows: dict[str, list[int]] = {}
    runs = {name: getattr(attention, name) for name in ("q_proj", "k_proj")}

    def noting(name: str) -> Any:
        forward = runs[name].forward

        def note(x: Tensor) -> Tensor:
            rows.setdefault(name, []).append(x.shape[:-1].numel())
            output: Tensor = forward(x)
            return output

        return note

    for length in (4, 4, 3):
        embeddings = runner.embed(range(70, 70 + 5 * length)).view(5, length, -1)
        runner.last_logits(embeddings, [length] * 5, SharedPrefixAttention(slot, 3))  # first use: shapes may be traced
        for name in runs:
            vars(runs[name])["forward"] = noting(name)
        runner.last_logits(embeddings, [length] * 5, SharedPrefixAttention(slot, 3))
        for name in runs:
            del vars(runs[name])["forward"]
        assert rows == {"q_proj": [5], "k_proj": [5 * length, 5]}
        rows.clear()
    slot.close()
