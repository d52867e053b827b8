"""The measured model: one set of weights for the engine and for Transformers, and engines of a given size."""

from __future__ import annotations

from random import Random

import pytest
import torch

from bench.conftest import TINY
from gradellm_bench import models
from gradellm_bench.models import BenchModel, random_bench_model, random_llama
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt_input import PromptInput


def test_both_models_share_their_tensors(tiny: BenchModel) -> None:
    parameters = dict(tiny.loaded.runner.model.named_parameters())
    reference_parameters = dict(tiny.reference.named_parameters())
    assert parameters.keys() == reference_parameters.keys()
    assert all(parameters[name].data_ptr() == reference_parameters[name].data_ptr() for name in parameters)
    assert tiny.reference.config._attn_implementation != "gradellm"
    # A step reads one row of the embedding, which is not tied to the head here.
    embedding = tiny.reference.get_input_embeddings().weight
    head = tiny.reference.get_output_embeddings().weight
    assert tiny.body_bytes + tiny.head_bytes + embedding.nbytes == sum(
        parameter.nbytes for parameter in parameters.values()
    )
    assert tiny.head_bytes == head.nbytes


def test_a_tied_head_is_read_in_a_step_but_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SHAPES, "tied", {**TINY, "tie_word_embeddings": True})
    tied = random_bench_model("tied", dtype=torch.float32, device=torch.device("cpu"))
    assert tied.head_bytes == 4 * 100 * 32
    assert tied.body_bytes + tied.head_bytes == sum(parameter.nbytes for parameter in tied.reference.parameters())


def test_prompts_have_no_special_tokens(tiny: BenchModel) -> None:
    prompt = tiny.prompt(Random(0), 2000)
    assert set(prompt) == set(range(1, 100))  # token 0 begins, ends and pads


def test_an_engine_is_reused_if_its_size_is_the_same(tiny: BenchModel) -> None:
    """Its prefix cache is empty again."""
    engine, pool = tiny.engine(max_running=1, num_tokens=64), tiny.loaded.runner.pool
    list(engine.generate(PromptInput(prompt_ids=tiny.prompt(Random(0), 40)), Sampling(max_new_tokens=2)))
    assert pool.num_retained_tokens >= 40
    assert tiny.engine(max_running=1, num_tokens=64) is engine
    assert pool.num_retained_tokens == 0
    assert tiny.engine(max_running=1, num_tokens=65) is not engine
    assert tiny.loaded.runner.pool.num_tokens == 65


def test_a_small_cache_still_has_the_slots_that_an_engine_needs(tiny: BenchModel) -> None:
    assert tiny.engine(max_running=1, num_tokens=4).scheduler.max_running == 1


@pytest.mark.parametrize("name", ["tiny", "broken"])
def test_the_default_dtype_is_restored(shape: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(models.SHAPES, "broken", {**TINY, "hidden_act": "no such activation"})
    try:
        model, tokenizer = random_llama(name, dtype=torch.bfloat16, device=torch.device("cpu"))
    except KeyError:
        assert name == "broken"
    else:
        assert model.dtype == torch.bfloat16
        assert tokenizer("w5 w99 w1")["input_ids"] == [5, 99, 1]
    assert torch.get_default_dtype() == torch.float32
