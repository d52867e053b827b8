"""Which lengths change a model's rotary frequencies, its two sets of factors, and how they are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    Engine,
    ModelLoadError,
    UnsupportedModelError,
)
from gradellm_engine.layers import rotary_switch
from gradellm_engine.layers.rotary_switch import context_limit, encode_positions, switch_tokens
from gradellm_engine.passes.base import SequenceChunk
from support.rotary_models import CASES, CONTEXT, LONGROPES, SWITCH, longrope
from support.tiny_models import save_random_model


def test_prefixes_are_found_by_their_factors(load_case: Any) -> None:
    engine: Engine = load_case("longrope")
    engine.model.runner.allocate_pool(200)
    pool = engine.model.runner.pool
    ids = list(range(30))
    for is_long in (False, True):
        slot = pool.allocate(40, is_long=is_long)
        assert slot is not None
        slot.ids += ids[:20]
        slot.retain()
    assert pool.num_retained_tokens == 40  # neither is a prefix for the other
    for is_long in (False, True):
        slot = pool.allocate(40, ids, is_long=is_long)
        assert slot is not None
        assert (slot.is_long, slot.length) == (is_long, 20)
        slot.close()
    other = pool.allocate(40, [7, *ids], is_long=True)
    assert other is not None
    assert other.length == 0


def test_positions_are_encoded() -> None:
    assert encode_positions(range(3), is_long=False) == [0, 1, 2]
    assert encode_positions(range(3), is_long=True) == [-1, -2, -3]


@pytest.mark.parametrize("name", LONGROPES)
def test_both_factor_sets_equal_transformers(checkpoint: Any, name: str) -> None:
    """At every position, in one call: cosines and sines, with their scale."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint(name))
    rotary = model.model.rotary_emb
    types = [{"layer_type": each} for each in rotary.rope_type] if isinstance(rotary.rope_type, dict) else [{}]
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    short, far = torch.arange(SWITCH)[None], torch.arange(CONTEXT)[None]
    expected = [(rotary(x, short, **each), rotary(x, far, **each)) for each in types]
    rotary_switch.use_rotary_sets(model, SWITCH)
    positions = torch.cat((short, ~far), 1)
    for each, tables in zip(types, expected, strict=True):
        for actual, expected_parts in zip(
            model.model.rotary_emb(x, positions, **each), zip(*tables, strict=True), strict=True
        ):
            assert torch.equal(actual, torch.cat(expected_parts, 1))


@pytest.mark.parametrize("name", LONGROPES)
def test_the_check_at_load_sees_wrong_factors(checkpoint: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = rotary_switch.RotarySets._frequencies_for

    def one_set(self: Any, last: int) -> dict[str, Tensor]:
        return own(self, 0)

    def swapped(self: Any, last: int) -> dict[str, Tensor]:
        return own(self, 2 * SWITCH - 1 - last)

    for wrong in (one_set, swapped):
        monkeypatch.setattr(rotary_switch.RotarySets, "_frequencies_for", wrong)
        with pytest.raises(UnsupportedModelError, match="logits differ from Transformers' own"):
            Engine.load(str(checkpoint(name)), dtype="float64")


def test_passes_do_not_mix_factors_in_one_beginning(load_case: Any) -> None:
    runner = load_case("longrope").model.runner
    assert (runner.is_long(SWITCH), runner.is_long(SWITCH + 1)) == (False, True)
    runner.allocate_pool(100)
    slot = runner.pool.allocate_probe(50)
    runner.prefill([SequenceChunk.new(slot, list(range(20)))])
    from gradellm_engine.passes.shared_prefix import SharedPrefixAttention

    embeddings = runner.embed([[1] * 8])
    with pytest.raises(ValueError, match="different rotary factors"):
        runner.last_logits(embeddings, [8], SharedPrefixAttention(slot, 20))
    slot.close()


def test_a_context_ends_where_keys_cannot_be_kept(checkpoint: Any) -> None:
    stages: list[str] = []
    engine = Engine.load(str(checkpoint("dynamic")), progress=stages.append)
    assert engine.info.context_tokens == SWITCH
    assert f"limiting the context to {SWITCH} tokens: rope_type dynamic changes all rotary frequencies" in stages[0]
    with pytest.raises(ModelLoadError, match=f"takes 2 to {SWITCH}: rope_type dynamic changes all rotary frequencies"):
        Engine.load(str(checkpoint("dynamic")), context_tokens=SWITCH + 1)


def test_layers_that_change_at_several_lengths_end_the_context_at_the_first(tmp_path: Path) -> None:
    full, sliding = (longrope(16, rope_theta=1e4, original_max_position_embeddings=limit) for limit in (24, 30))
    folder = save_random_model(
        tmp_path, "gemma3_text", rope_parameters={"full_attention": full, "sliding_attention": sliding}
    )
    stages: list[str] = []
    engine = Engine.load(str(folder), progress=stages.append)
    assert engine.info.context_tokens == SWITCH
    assert engine.model.runner.switch_tokens is None
    assert (
        "limiting the context to 24 tokens: its layers change from short to long rotary factors at 24 and 30"
        in (stages[0])
    )
    with pytest.raises(ModelLoadError, match="takes 2 to 24: its layers change"):
        Engine.load(str(folder), context_tokens=25)


@pytest.mark.parametrize("name", CASES)
def test_contexts(checkpoint: Any, name: str, load_case: Any) -> None:
    config = load_case(name).model.runner.config
    assert context_limit(config).num_tokens == load_case(name).info.context_tokens
    assert load_case(name).info.context_tokens == (SWITCH if name == "dynamic" else CONTEXT)
    assert switch_tokens(config) == (SWITCH if name in LONGROPES else None)
