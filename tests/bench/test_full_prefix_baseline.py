"""The baseline without a KV cache computes the engine's tokens and attribution rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from gradellm_bench.full_prefix_baseline import recompute_step
from gradellm_bench.models import BenchModel, checkpoint_bench_model
from gradellm_engine.params import AttributionSettings, Sources
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt_input import PromptInput
from support.oracle import relative_error


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_recomputation_finds_the_engines_tokens_and_attribution_rows(
    model_path: Callable[[str], Path], model: str
) -> None:
    bench_model = checkpoint_bench_model(str(model_path(model)), dtype=torch.float32, device=torch.device("cpu"))
    prompt = bench_model.prompt(Random(1), 20)
    engine = bench_model.engine(max_running=1, num_tokens=30)
    steps = engine.generate(
        PromptInput(prompt_ids=prompt),
        Sampling(max_new_tokens=3, temperature=0.0),
        AttributionSettings(sources=Sources.PREFIX),
    )
    prefix = list(prompt)
    for step in steps:
        chosen, scores = recompute_step(bench_model.reference, prefix)
        assert chosen == step.id
        assert step.attribution is not None
        assert relative_error(step.attribution.scores, scores.double()) <= 1e-5
        prefix.append(chosen)


def test_a_failed_step_leaves_no_state_behind(tiny: BenchModel) -> None:
    before = tiny.reference.config._attn_implementation
    expected = recompute_step(tiny.reference, [1, 2, 3])
    with pytest.raises(IndexError):
        recompute_step(tiny.reference, [1, 2, 10_000])  # a token that the vocabulary lacks
    assert tiny.reference.config._attn_implementation == before
    chosen, scores = recompute_step(tiny.reference, [1, 2, 3])
    assert chosen == expected[0]
    assert scores.shape == (3,)
    assert torch.equal(scores, expected[1])
