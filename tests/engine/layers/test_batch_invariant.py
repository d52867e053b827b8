"""Batch-invariant execution: a request's results are the same bits in any batch and with any prefill chunks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradellm_engine import (
    AttributionSettings,
    Contrast,
    Delivery,
    Engine,
    GradEllm,
    ModelLoadError,
    Quantization,
    Request,
    Sampling,
    Sources,
    UnsupportedModelError,
)
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.core.scheduling import pass_timings
from gradellm_engine.layers import batch_invariant as invariant
from gradellm_engine.layers.batch_invariant import patch_elementwise_modules
from gradellm_engine.model import loader
from gradellm_engine.model.families import FAMILIES
from gradellm_engine.model.self_checks import is_batch_variant
from gradellm_engine.params import PRESETS
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT
from support.scheduler_harness import RequestOutput, collect, run_alone
from support.tiny_models import save_random_model

ModelPath = Callable[[str], Path]
Load = Callable[..., Engine]
BY_TOKENS = sorted(name for name, family in FAMILIES.items() if family.supports_batch_invariance)
TOGETHER = sorted(name for name, family in FAMILIES.items() if not family.supports_batch_invariance)
WIDE: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 2, "head_dim": 64,
        "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 1024}  # fmt: skip
PROMPTS = ["Once upon a time, a small red fox did not like rain.", "Once upon a time, a small red", "A dog", "1, 2, 3"]
EXPLAINED = [
    AttributionSettings(sources=Sources.PREFIX),
    AttributionSettings(sources=Sources.PREFIX, delivery=Delivery.CHUNKED, chunk_size=3),
    AttributionSettings(sources=Sources.PREFIX, delivery=Delivery.CHUNKED, chunk_size=16),
    AttributionSettings(sources=Sources.PREFIX, contrast=Contrast(runner_up=True)),
    AttributionSettings(method=GradEllm(**PRESETS["knockout"])),
    AttributionSettings(method=GradEllm(**PRESETS["recommended"])),
    AttributionSettings(method=replace(GradEllm(), layers=(1,)), delivery=Delivery.CHUNKED),
    None,
]


@pytest.fixture(scope="module")
def load(model_path: ModelPath, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A model by name and dtype, loaded once; `wide` has weights that all kernels of default passes are for."""

    def path(name: str) -> Path:
        return save_random_model(tmp_path_factory.mktemp("wide"), **WIDE) if name == "wide" else model_path(name)

    return cache(lambda name, dtype="float32": Engine.load(str(path(name)), dtype=dtype, batch_invariant=True))


def new_request(
    engine: Engine, seed: int, attribution: AttributionSettings | None, forced_ids: Sequence[int] = ()
) -> Request:
    sampling = Sampling(max_new_tokens=24, temperature=float(seed % 3 != 0), seed=seed, num_alternatives=2)
    return engine.generation_request(PROMPTS[seed % len(PROMPTS)], sampling, attribution, forced_ids=forced_ids)


def assert_same(batched: RequestOutput, alone: RequestOutput, first: int = 0) -> None:
    """From the token `first` on, to the last bit: ids, logprobs, alternatives, targets and scores."""
    assert batched.error is None
    assert alone.error is None
    assert [(s.index, s.id, s.logprob, s.alternatives) for s in batched.steps] == [
        (s.index, s.id, s.logprob, s.alternatives) for s in alone.steps[first:]
    ]
    rows, expected = batched.attributions, alone.attributions
    assert set(rows) == {index for index in expected if index >= first}
    for index, row in rows.items():
        assert row.target_token_id == expected[index].target_token_id
        assert row.contrast_token_id == expected[index].contrast_token_id
        assert torch.equal(row.scores, expected[index].scores), f"token {index}"


def disturbed(engine: Engine, seed: int) -> None:
    """Requests that arrive at random moments, end, break off and are resumed; compared with the same requests alone."""
    rng = random.Random(seed)
    specs = [(rng.randrange(100), rng.choice(EXPLAINED)) for _ in range(6)]
    alone = [run_alone(engine, new_request(engine, *seed_and_settings)) for seed_and_settings in specs]
    engine.model.runner.allocate_pool(2048)
    scheduler = Scheduler(engine.model.runner, max_running=rng.randint(2, 6))
    running: list[tuple[int, int, Request, RequestOutput]] = []  # which, from which token on
    due = [(which, 0) for which in range(len(specs))]
    num_broken = 0
    while due or running:
        while due and rng.random() < 0.5:
            which, first = due.pop(rng.randrange(len(due)))
            forced = alone[which].ids[:first]
            running.append((which, first, new_request(engine, *specs[which], forced_ids=forced), RequestOutput()))
            scheduler.submit(running[-1][2])
        for _ in scheduler.step():
            collect([seed_and_settings for *_, seed_and_settings, _ in running], [output for *_, output in running])
        for entry in list(running):
            which, first, seed_and_settings, output = entry
            collect([seed_and_settings], [output])
            if seed_and_settings.is_closed:
                assert_same(output, alone[which], first)
                running.remove(entry)
            elif num_broken < 12 and rng.random() < 0.04:
                scheduler.cancel(seed_and_settings)
                running.remove(entry)
                due.append((which, first + len(output.steps)))
                num_broken += 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "demo", "wide"])
def test_requests_that_arrive_end_and_are_resumed(
    load: Load, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pass_timings.MAX_PREFILL_CHUNK_TOKENS, "cpu", random.Random(seed).choice([3, 17, 512]))
    monkeypatch.setitem(pass_timings.MIN_PREFILL_CHUNK_TOKENS, "cpu", 3)
    disturbed(load(name), seed)


@pytest.mark.parametrize("name", BY_TOKENS)
def test_each_family(load: Load, name: str) -> None:
    disturbed(load(name), 7)


def test_float64(load: Load) -> None:
    disturbed(load("llama", "float64"), 1)


def test_one_thread_and_three(model_path: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where kernels split the work among threads."""
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            disturbed(Engine.load(str(model_path("llama")), threads=count, batch_invariant=True), 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["llama", "mistral", "wide"])
def test_a_given_completion_has_the_same_rows(load: Load, name: str) -> None:
    """As `gradellm verify` needs it."""
    engine = load(name)
    alone = run_alone(engine, new_request(engine, 5, EXPLAINED[0]))
    again = run_alone(engine, engine.attribution_request(PROMPTS[5 % 4], alone.ids, EXPLAINED[0]))
    assert [s.logprob for s in again.steps] == [s.logprob for s in alone.steps]
    for row, expected in zip(again.rows, alone.rows, strict=True):
        assert torch.equal(row, expected)


def test_the_kernel_name_states_batch_invariance(load: Load, model_path: ModelPath) -> None:
    assert load("llama").info.attention_kernel == "gradellm, batch-invariant"
    assert Engine.load(str(model_path("llama"))).info.attention_kernel == "gradellm"


@pytest.mark.parametrize("name", TOGETHER)
def test_families_whose_tokens_are_taken_together_are_refused(model_path: ModelPath, name: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{name} has no batch-invariant results"):
        Engine.load(str(model_path(name)), batch_invariant=True)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"dtype": "bfloat16"}, "not in bfloat16"),
        ({"quantization": Quantization.INT8}, "not with weights in int8"),
        ({"device_map": "auto"}, "not on auto"),
    ],
)
def test_unsupported_settings_are_refused(model_path: ModelPath, how: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelLoadError, match=f"come from a CPU in float32 or float64, {why}: leave the switch off"):
        Engine.load(str(model_path("llama")), batch_invariant=True, **how)


def test_a_processor_whose_results_vary_is_refused(model_path: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "is_batch_variant", lambda runner, vocab_size: True)
    with pytest.raises(UnsupportedModelError, match="results depend on the rest of the batch"):
        Engine.load(str(model_path("llama")), batch_invariant=True)


def test_the_check_finds_batch_variance(load: Load, model_path: ModelPath) -> None:
    """With a runner that is not batch-invariant."""
    engine = Engine.load(str(model_path("llama")))
    assert is_batch_variant(engine.model.runner, engine.info.vocab_size)
    assert not is_batch_variant(load("llama").model.runner, engine.info.vocab_size)


@pytest.mark.parametrize("width", [32, 96, 7, 172, 1024])
@pytest.mark.parametrize("kind", [nn.SiLU, nn.GELU, nn.Tanh])
def test_activations_are_those_of_a_token_alone(kind: type[nn.Module], width: int) -> None:
    model = nn.Sequential(kind())
    patch_elementwise_modules(model)
    x = torch.randn(1, 101, width, requires_grad=True)
    y = model(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    for position in (0, 50, 99, 100):
        row = x[:, position : position + 1].detach().clone().requires_grad_()
        alone = model(row)
        assert torch.equal(alone, y[:, position : position + 1])
        (its_gradient,) = torch.autograd.grad(alone.square().sum(), row)
        assert torch.equal(its_gradient, gradient[:, position : position + 1])


def test_slots_begin_where_addresses_are_aligned(load: Load) -> None:
    pool = load("llama").model.runner
    pool.allocate_pool(1000)
    slots = [pool.pool.allocate(capacity) for capacity in (5, 16, 17, 100)]
    assert [slot.start for slot in slots if slot] == [0, 16, 32, 64]
    for slot in slots:
        assert slot is not None
        slot.ids += [1, 2, 3, slot.start]
        slot.retain()
    assert pool.pool.num_retained_tokens == 4 * SLOT_ALIGNMENT
    pool.pool.evict_all()
    assert pool.pool.num_free_tokens == pool.pool.num_tokens == 1008


def test_alignment_constants() -> None:
    assert SLOT_ALIGNMENT * torch.float32.itemsize == 64
    assert invariant._WHOLE_VECTORS % 16 == 0
