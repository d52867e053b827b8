"""The shares of memory that the KV cache and post-hoc methods get."""

from __future__ import annotations

import pytest

from gradellm_engine import Engine, ModelLoadError
from gradellm_engine.core import memory_sizing
from gradellm_engine.core.memory_sizing import KV_CACHE_SHARE, MIN_KV_TOKENS, kv_cache_tokens, post_hoc_bytes


def test_the_kv_cache_gets_a_share_of_the_free_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = engine.model.runner.bytes_per_token
    monkeypatch.setattr(memory_sizing, "free_bytes", lambda device: 100 * per_token)
    assert kv_cache_tokens(engine.model, max_running=4, kv_bytes=None) == int(100 * KV_CACHE_SHARE)
    monkeypatch.setattr(memory_sizing, "free_bytes", lambda device: 2**50)
    assert kv_cache_tokens(engine.model, max_running=4, kv_bytes=None) == 2 * 4 * engine.info.context_tokens


def test_a_kv_cache_of_a_given_size(engine: Engine) -> None:
    per_token = engine.model.runner.bytes_per_token
    assert kv_cache_tokens(engine.model, max_running=1, kv_bytes=50 * per_token + 1) == 50
    with pytest.raises(ModelLoadError, match=f"{MIN_KV_TOKENS} tokens must fit"):
        kv_cache_tokens(engine.model, max_running=1, kv_bytes=MIN_KV_TOKENS * per_token - 1)
    with pytest.raises(ModelLoadError, match="at least 1 request"):
        kv_cache_tokens(engine.model, max_running=0, kv_bytes=None)


def test_memory_of_post_hoc_methods() -> None:
    assert post_hoc_bytes(None, 1000) == 500
    assert post_hoc_bytes(None, -5) == 1
    assert post_hoc_bytes(7, 1000) == 7
    with pytest.raises(ModelLoadError, match="method_bytes is 0"):
        post_hoc_bytes(0, 1000)
