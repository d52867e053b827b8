"""The shares of memory that the KV cache and post-hoc methods get, and a limit of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from gradellm_engine import Engine, ModelLoadError
from gradellm_engine.core.memory_sizing import KV_CACHE_SHARE, MIN_KV_TOKENS, kv_cache_tokens, post_hoc_bytes
from gradellm_engine.layers.linear import FrozenLinear, pack_weights, packed_bytes, replace_linears
from gradellm_engine.layers.packing import best_packing
from gradellm_engine.utils.memory import resident_bytes


def test_the_kv_cache_gets_a_share_of_the_free_memory(engine: Engine) -> None:
    per_token = engine.model.runner.bytes_per_token
    assert kv_cache_tokens(engine.model, 4, None, 100 * per_token, None) == int(100 * KV_CACHE_SHARE)
    assert kv_cache_tokens(engine.model, 4, None, 2**50, None) == 2 * 4 * engine.info.context_tokens


def test_a_kv_cache_of_a_given_size(engine: Engine) -> None:
    per_token = engine.model.runner.bytes_per_token
    given, free = 50 * per_token + 1, 40 * per_token
    assert kv_cache_tokens(engine.model, 1, given, free, None) == 50  # the caller knows best
    with pytest.raises(ModelLoadError, match=f"{given:,} bytes does not fit memory of 9,999 bytes.*leaves {free:,}"):
        kv_cache_tokens(engine.model, 1, given, free, 9999)
    with pytest.raises(ModelLoadError, match=f"{MIN_KV_TOKENS} tokens must fit"):
        kv_cache_tokens(engine.model, 1, MIN_KV_TOKENS * per_token - 1, free, None)
    with pytest.raises(ModelLoadError, match="at least 1 request"):
        kv_cache_tokens(engine.model, 0, None, free, None)


def test_a_limit_of_memory_bounds_all_that_is_planned(model_path: Callable[[str], Path]) -> None:
    path, spare = str(model_path("llama")), 200 * 2**20
    limit = resident_bytes() + spare
    engine = Engine.load(path, dtype="float32", device="cpu", memory_bytes=limit)
    plan = engine.memory
    assert plan.limit == limit
    assert plan.weights > 0
    assert plan.packed_weights == 0  # the model is too small for that
    assert plan.kv_cache == engine.kv_bytes
    assert plan.methods == engine.method_bytes
    assert plan.kv_cache + plan.methods <= spare
    assert plan.resident <= limit
    engine.return_unused_memory()


def test_packed_copies_keep_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm_engine.layers.gemm.MIN_PACKED_WEIGHTS", 1)
    best_packing.cache_clear()
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4))).requires_grad_(False)
    replace_linears(model)
    size = 64 * 64 * 4
    if not pack_weights(model, nn.Identity(), 8 * size):
        pytest.skip("no packed layout is faster here")
    assert packed_bytes(model) == 8 * size
    for layer in model:
        assert isinstance(layer, FrozenLinear)
        layer.gemm_weight.unpack()
    pack_weights(model, nn.Identity(), 5 * size)
    assert packed_bytes(model) == 5 * size


def test_memory_that_the_weights_alone_exceed(model_path: Callable[[str], Path]) -> None:
    with pytest.raises(
        ModelLoadError, match=r"memory of 1,000 bytes is too small: the weights alone take [\d,]+; give"
    ):
        Engine.load(str(model_path("llama")), dtype="float32", device="cpu", memory_bytes=1000)


def test_memory_of_post_hoc_methods() -> None:
    assert post_hoc_bytes(None, 1000) == 500
    assert post_hoc_bytes(None, -5) == 1
    assert post_hoc_bytes(7, 1000) == 7
    with pytest.raises(ModelLoadError, match="method_bytes is 0"):
        post_hoc_bytes(0, 1000)
