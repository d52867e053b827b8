"""The first layer's projections are computed once for all sequences, with unchanged results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradellm_engine import Engine
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.first_layer_reuse import MIN_TEXTS, TokenSubstitutions
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention
from support.tiny_models import FAMILIES

ModelPath = Callable[[str], Path]
NUM_TEXTS, LENGTH = 6, 12


@pytest.fixture
def load(model_path: ModelPath) -> Callable[[str], ModelRunner]:
    """A new runner, which has not probed its first layer yet."""
    return lambda name: Engine.load(str(model_path(name)), dtype="float32", threads=1).model.runner


def logits(runner: ModelRunner, begun: int = 3, *, has_substitutions: bool = True) -> tuple[Tensor, Tensor]:
    """Logits of sequences after `begun` tokens, with random tokens zeroed; batched, and each alone. [B, V] each"""
    generator = torch.Generator().manual_seed(begun)
    slot = runner.pool.allocate(3)
    assert slot is not None
    runner.prefill([SequenceChunk.new(slot, [60, 61, 62])])
    ids = torch.arange(70, 70 + LENGTH).repeat(NUM_TEXTS, 1)
    gone = torch.rand(ids.shape, generator=generator) < 0.5
    lengths = [LENGTH, LENGTH, LENGTH, 9, 5, 1]
    embeddings = runner.embed(ids).masked_fill(gone[:, :, None], 0)
    changes = TokenSubstitutions.of(ids.masked_fill(gone, -1), lengths) if has_substitutions else None
    assert (changes is not None) == has_substitutions
    found = runner.last_logits(embeddings, lengths, SharedPrefixAttention(slot, begun), changes)
    alone = [
        runner.last_logits(embeddings[i : i + 1, :length], [length], SharedPrefixAttention(slot, begun))[0]
        for i, length in enumerate(lengths)
    ]
    slot.close()
    return found, torch.stack(alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_text_alone(load: Callable[[str], ModelRunner], family: str) -> None:
    runner = load(family)
    for begun in (0, 3, 3):  # the first pass tries
        found, alone = logits(runner, begun)
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)
    assert runner.first_layer is not None
    assert runner.first_layer.supports_dedup
    assert not runner.blocks[0]._forward_pre_hooks
    assert not any("forward" in vars(module) for module in runner.blocks[0].modules())


def test_queries_keys_and_values_are_of_two_rows_a_position(load: Callable[[str], ModelRunner]) -> None:
    runner = load("llama")
    rows: dict[str, list[int]] = {}

    def noting(name: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def note(x: Tensor) -> Any:
            rows.setdefault(name, []).append(x.shape[:-1].numel())
            return forward(x)

        return note

    attention: Any = runner.blocks[0].self_attn
    for name in ("q_proj", "k_proj", "o_proj"):
        module = getattr(attention, name)
        vars(module)["forward"] = noting(name, module)
    slot = runner.pool.allocate(1)
    assert slot is not None
    ids = torch.arange(70, 70 + LENGTH).repeat(NUM_TEXTS, 1)
    ids[1:, 3] = 5
    changes = TokenSubstitutions.of(ids, [LENGTH] * NUM_TEXTS)
    runner.last_logits(runner.embed(ids), [LENGTH] * NUM_TEXTS, SharedPrefixAttention(slot, 0), changes)
    few, all_rows = 2 * LENGTH, NUM_TEXTS * LENGTH
    assert rows == {"q_proj": [few], "k_proj": [few], "o_proj": [all_rows]}
    assert all("forward" in vars(getattr(attention, name)) for name in rows)  # what was there is there again


def assert_left_alone(runner: ModelRunner) -> None:
    """Results are those without reuse, and reuse is switched off from then on."""
    found, alone = logits(runner)
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)
    assert runner.first_layer is not None
    assert runner.first_layer.supports_dedup is False


def test_a_layer_that_uses_queries_after_its_attention_is_left_alone(load: Callable[[str], ModelRunner]) -> None:
    runner = load("llama")
    attention: Any = runner.blocks[0].self_attn
    queries: list[Tensor] = []
    attention.q_proj.register_forward_hook(lambda layer, args, output: queries.append(output))
    attention.o_proj.register_forward_pre_hook(lambda layer, args: (args[0] * queries[-1].sigmoid(),))
    for _ in range(2):
        assert_left_alone(runner)


def test_rows_that_depend_on_more_than_their_token_are_left_alone(load: Callable[[str], ModelRunner]) -> None:
    runner = load("llama")
    runner.blocks[0].register_forward_pre_hook(lambda block, args: (args[0].cumsum(1), *args[1:]))
    assert_left_alone(runner)


def test_an_error_restores_the_layer(load: Callable[[str], ModelRunner]) -> None:
    runner = load("llama")
    attention: Any = runner.blocks[0].self_attn

    def fail(layer: nn.Module, args: Any) -> None:
        raise MemoryError

    hook = attention.o_proj.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        logits(runner)
    hook.remove()
    assert not any("forward" in vars(module) for module in runner.blocks[0].modules())
    found, alone = logits(runner)
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


@given(st.integers(MIN_TEXTS, 7), st.integers(1, 6), st.randoms(use_true_random=False))
def test_two_rows_a_position_are_found(num_texts: int, length: int, random: Any) -> None:
    pairs = torch.arange(2 * length).view(2, length)
    chosen = torch.tensor([[random.random() < 0.5 for _ in range(length)] for _ in range(num_texts)])
    codes = torch.where(chosen, pairs[1], pairs[0])
    lengths = sorted((random.randint(1, length) for _ in range(num_texts)), reverse=True)
    lengths[0] = length
    rows = codes[:, :, None].float()
    changes = TokenSubstitutions.of(codes, lengths)
    assert changes is not None
    found = changes.of_each(changes.pairs(rows))
    assert all(torch.equal(found[i, :n], rows[i, :n]) for i, n in enumerate(lengths))
    heads = changes.pairs(rows.repeat(1, 1, 6)).view(2, length, 3, 2).transpose(1, 2)
    assert torch.equal(changes.of_heads(heads).transpose(1, 2)[..., 0, 0], found[..., 0])


def test_three_rows_at_a_position_are_too_many() -> None:
    codes = torch.zeros(MIN_TEXTS, 3, dtype=torch.long)
    assert TokenSubstitutions.of(codes, [3] * MIN_TEXTS) is not None
    codes[1, 1], codes[2, 1] = 1, 2
    assert TokenSubstitutions.of(codes, [3] * MIN_TEXTS) is None
    assert TokenSubstitutions.of(codes, [3, 3, 1, 1]) is not None  # after its end
    assert TokenSubstitutions.of(codes[: MIN_TEXTS - 1, :1], [1] * (MIN_TEXTS - 1)) is None
