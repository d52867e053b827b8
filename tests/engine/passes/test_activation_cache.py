"""Cached outputs are used for the tokens that they belong to, change no score, and take a bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import AttributionSettings, Delivery, Engine, Sampling, Sources
from gradellm_engine.layers.gemm import GemmWeight
from gradellm_engine.layers.linear import FrozenLinear
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import GradEllm
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.ragged import RaggedLayer
from support.oracle import relative_error
from support.scheduler_harness import run, scheduler_of

PROMPT = [256, *range(65, 90)]
CHUNK = 4
EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))


@pytest.fixture(scope="module")
def load(model_path: Callable[[str], Path]) -> Callable[[str], Engine]:
    """Engines that run eagerly, so that calls can be recorded."""
    return cache(lambda name: Engine.load(str(model_path(name)), use_graphs=False))


@pytest.fixture
def runner(load: Callable[[str], Engine]) -> Iterator[ModelRunner]:
    runner = load("llama").model.runner
    runner.allocate_pool(400)
    yield runner
    runner.activation_cache = ActivationCache(runner.model.base_model)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[GemmWeight]:
    """The weights that were multiplied, one entry a call."""
    weights: list[GemmWeight] = []
    product = GemmWeight.product

    def counted(self: GemmWeight, x: Tensor) -> Tensor:
        weights.append(self)
        return product(self, x)

    monkeypatch.setattr(GemmWeight, "product", counted)
    return weights


def sequence(runner: ModelRunner, *, replay_length: int = CHUNK, count: int = CHUNK, first: int = 100) -> SequenceChunk:
    """A prompt and then tokens, a decode step each; the chunk that replays those tokens."""
    slot = runner.pool.allocate(len(PROMPT) + 40)
    assert slot is not None
    runner.prefill([SequenceChunk.new(slot, PROMPT)])
    for token_id in range(first, first + count):
        runner.step([SequenceChunk.new(slot, [token_id], replay_length=replay_length)])
    return SequenceChunk.replay(slot, len(PROMPT), len(PROMPT) + count, EXPLAIN)


def weights_of(runner: ModelRunner) -> set[GemmWeight]:
    """The weights of all linear layers but the head; of fused layers, together."""
    body: nn.Module = runner.model.base_model
    return {layer.gemm_weight for layer in body.modules() if type(layer) is FrozenLinear}


def targets(*chunks: SequenceChunk) -> list[Target]:
    return [Target(token_id + 1) for chunk in chunks for token_id in chunk.ids]


def test_a_chunk_whose_outputs_are_cached_computes_none_and_scores_the_same(
    runner: ModelRunner, computed: list[GemmWeight]
) -> None:
    chunk = sequence(runner)
    assert runner.activation_cache.num_tokens == CHUNK
    computed.clear()
    (cached,) = runner.replay([chunk], targets(chunk))
    assert not computed
    assert runner.activation_cache.num_tokens == 0
    (again,) = runner.replay([chunk], targets(chunk))  # no longer cached
    assert set(computed) == weights_of(runner)
    assert len(computed) == len(weights_of(runner))
    assert relative_error(cached, again) <= 1e-5


def test_attention_whose_output_is_not_used_returns_nan(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = sequence(runner)
    outputs: list[Tensor] = []
    output = RaggedLayer.output

    def noted(layer: RaggedLayer, query: Tensor) -> Tensor:
        outputs.append(output(layer, query))
        return outputs[-1]

    monkeypatch.setattr(RaggedLayer, "output", noted)
    (cached,) = runner.replay([chunk], targets(chunk))
    assert all(o.isnan().all() for o in outputs)
    outputs.clear()
    (again,) = runner.replay([chunk], targets(chunk))
    assert all(o.isfinite().all() for o in outputs)
    assert relative_error(cached, again) <= 1e-5


def test_attention_whose_output_is_used_computes_it(runner: ModelRunner) -> None:
    """A hook multiplies the output with itself before the next linear layer; its backward pass needs the output."""
    model: nn.Module = runner.model
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: (args[0] * args[0],))
        for name, layer in model.named_modules()
        if name.endswith("o_proj")
    ]
    assert len(hooks) == 3
    try:
        runner.skips_unused_outputs = None
        runner.allocate_pool(400)
        assert runner.skips_unused_outputs is False
        chunk = sequence(runner)
        (cached,) = runner.replay([chunk], targets(chunk))
        (again,) = runner.replay([chunk], targets(chunk))
        assert relative_error(cached, again) <= 1e-5
    finally:
        for hook in hooks:
            hook.remove()
        runner.skips_unused_outputs = None


def test_chunks_of_several_sequences_are_cached_separately(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    """Their decode steps were batched, together with a sequence that is not explained."""
    slots = [runner.pool.allocate(len(PROMPT) + 10) for _ in range(3)]
    for length, slot in enumerate(slots):
        assert slot is not None
        runner.prefill([SequenceChunk.new(slot, PROMPT[: len(PROMPT) - length])])
    for t in range(CHUNK):
        runner.step(
            [
                SequenceChunk.new(slot, [100 + 10 * i + t], replay_length=CHUNK if i != 1 else 0)
                for i, slot in enumerate(slots)
                if slot is not None
            ]
        )
    chunks = [
        SequenceChunk.replay(slot, slot.length - CHUNK, slot.length, EXPLAIN) for slot in (slots[2], slots[0]) if slot
    ]
    computed.clear()
    cached = runner.replay(chunks, targets(*chunks))
    assert not computed
    for chunk, heat_map in zip(chunks, cached, strict=True):
        (alone,) = runner.replay([chunk], targets(chunk))
        assert relative_error(heat_map, alone) <= 1e-5


def test_tokens_of_explained_passes_are_cached(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    """A pass may have a token that is explained at once and one that is replayed later."""
    replayed, other = (runner.pool.allocate(60) for _ in range(2))
    assert replayed is not None
    assert other is not None
    runner.prefill([SequenceChunk.new(replayed, PROMPT), SequenceChunk.new(other, PROMPT)])
    for token_id in range(100, 100 + CHUNK):
        chunks = [
            SequenceChunk.new(replayed, [token_id], replay_length=CHUNK),
            SequenceChunk.new(other, [token_id], EXPLAIN),
        ]
        run = runner.explained_pass(chunks)
        run.heat_maps([None, Target(token_id + 1)])
    chunk = SequenceChunk.replay(replayed, len(PROMPT), replayed.length, EXPLAIN)
    computed.clear()
    (cached,) = runner.replay([chunk], targets(chunk))
    assert not computed
    assert relative_error(cached, runner.replay([chunk], targets(chunk))[0]) <= 1e-5


def test_a_chunk_with_an_uncached_token_is_recomputed(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    chunk = sequence(runner, count=CHUNK - 1)
    runner.step([SequenceChunk.new(chunk.slot, [120])])  # say, while attribution was off
    chunk = SequenceChunk.replay(chunk.slot, chunk.start, chunk.start + CHUNK, EXPLAIN)
    computed.clear()
    runner.replay([chunk], targets(chunk))
    assert computed
    assert runner.activation_cache.num_tokens == 0


def test_cache_memory_is_reserved_per_chunk_and_freed(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    runner.activation_cache = ActivationCache(runner.model.base_model, max_tokens=2 * CHUNK + 1)
    chunks = [sequence(runner, count=2) for _ in range(3)]
    assert runner.activation_cache.num_tokens == 2 * CHUNK
    computed.clear()
    runner.replay([chunks[2]], targets(chunks[2]))
    assert computed  # there was no room for the third
    computed.clear()
    runner.replay([chunks[0]], targets(chunks[0]))
    assert not computed
    chunks[1].slot.close()
    del chunks
    assert runner.activation_cache.num_tokens == 0


def test_a_chunk_beyond_its_reservation_is_recomputed(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    chunk = sequence(runner, replay_length=2, count=3)
    assert runner.activation_cache.num_tokens == 0
    computed.clear()
    runner.replay([chunk], targets(chunk))
    assert computed


def test_outputs_modified_in_place_are_modified_again(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    """A model may change a layer's output in place after the layer has given it: what is cached is what it gave."""
    layer = runner.model.base_model.layers[1].mlp.down_proj
    hook = layer.register_forward_hook(lambda module, args, output: output.mul_(2.0))
    try:
        chunk = sequence(runner)
        computed.clear()
        (cached,) = runner.replay([chunk], targets(chunk))
        assert not computed
        assert relative_error(cached, runner.replay([chunk], targets(chunk))[0]) <= 1e-5
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3", "phi"])
def test_requests_cache_only_the_outputs_of_their_chunks(
    load: Callable[[str], Engine], computed: list[GemmWeight], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    engine = load(family)
    runner = engine.model.runner
    scheduler = scheduler_of(engine, max_running=2, num_tokens=200)
    monkeypatch.setattr(runner, "activation_cache", ActivationCache(runner.model.base_model, max_tokens=100))

    def settings(size: int) -> AttributionSettings:
        return AttributionSettings(sources=Sources.PREFIX, delivery=Delivery.CHUNKED, chunk_size=size)

    def run_requests() -> list[list[Tensor]]:
        requests = [
            engine.generation_request("a small fox", Sampling(max_new_tokens=9), settings(size)) for size in (3, 4)
        ]
        return [outcome.rows for outcome in run(scheduler, requests)]

    computed.clear()  # loading a model runs it
    cached = run_requests()
    num_computed = len(computed)
    assert runner.activation_cache.num_tokens == 0
    monkeypatch.setattr(runner, "activation_cache", ActivationCache(runner.model.base_model, max_tokens=0))
    computed.clear()
    again = run_requests()
    assert len(computed) > 1.3 * num_computed
    for cached_rows, computed_rows in zip(cached, again, strict=True):
        assert len(cached_rows) == 9
        assert max(relative_error(a, b) for a, b in zip(cached_rows, computed_rows, strict=True)) <= 1e-5


def test_layers_that_a_pass_calls_twice_are_computed_again(runner: ModelRunner, computed: list[GemmWeight]) -> None:
    layer = runner.model.base_model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda module, args: (args[0], type(module).forward(module, args[0]))[:1])
    try:
        chunk = sequence(runner)
        computed.clear()
        (cached,) = runner.replay([chunk], targets(chunk))
        assert set(computed) == {layer.gemm_weight}
        assert relative_error(cached, runner.replay([chunk], targets(chunk))[0]) <= 1e-5
    finally:
        hook.remove()


def test_takes_half_of_the_models_size_at_most(runner: ModelRunner) -> None:
    body = runner.model.base_model
    activations = ActivationCache(body)
    linears = [layer for layer in body.modules() if type(layer) is FrozenLinear]
    assert activations.bytes_per_token == sum(layer.out_features * layer.weight.itemsize for layer in linears)
    size = sum(parameter.nbytes for parameter in body.parameters())
    assert size / 3 < activations.max_tokens * activations.bytes_per_token <= size / 2
    assert ActivationCache(nn.Identity()).max_tokens == 0


def test_requests_without_a_replay_cache_nothing(runner: ModelRunner) -> None:
    chunk = sequence(runner, replay_length=0)
    assert runner.activation_cache.num_sequences == 0
    assert torch.isfinite(runner.replay([chunk], targets(chunk))[0]).all()
