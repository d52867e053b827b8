"""Memory of the pool that is committed before it is used."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.kv_cache import pool as module
from gradellm_engine.kv_cache.pool import KVPool, KVSlot, LayerShape, RotaryShape

CPU = torch.device("cpu")


def allocated(pool: KVPool, capacity: int) -> KVSlot:
    slot = pool.allocate(capacity)
    assert slot is not None
    return slot


def test_memory_is_committed_after_what_slots_have_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KVPool(
        [LayerShape(2, 3, 4, torch.float32, CPU)] * 2, [RotaryShape(2, torch.float32, CPU)], 160
    )  # of which an eighth, 20 positions, is committed ahead
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(7)
    monkeypatch.setattr(module, "AHEAD_BYTES", 1)  # a position a call
    slot = allocated(pool, 10)
    calls = 1
    while pool.commit_ahead():
        calls += 1
    assert calls == 20
    assert (pool.keys[0][:, :10] == 7).all()
    assert (pool.keys[0][:, 10:30] == 0).all()
    assert (pool.values[1][:, 30:] == 7).all()
    assert not pool.commit_ahead()
    slot.close()
    allocated(pool, 12)  # reaches two positions further than any before
    assert pool.commit_ahead()
    assert not pool.commit_ahead()
    assert (pool.keys[0][:, 30:32] == 0).all()
    assert (pool.keys[0][:, 32:] == 7).all()
