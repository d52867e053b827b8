"""Slots of a small KV pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.kv_cache.pool import KVPool, KVSlot, LayerShape


@pytest.fixture
def slots(normal: Callable[..., Tensor]) -> Callable[..., list[KVSlot]]:
    """Slots of one pool by their lengths: two layers of two key-value heads, random keys [4] and values [5]."""

    def fill(*lengths: int, dtype: torch.dtype = torch.float64, alignment: int = 1) -> list[KVSlot]:
        shape = LayerShape(2, 4, 5, dtype, torch.device("cpu"))
        pool = KVPool([shape, shape], [], sum(lengths) + alignment * len(lengths), alignment)
        filled = [pool.allocate_probe(length) for length in lengths]
        for seed, (slot, length) in enumerate(zip(filled, lengths, strict=True)):
            slot.ids += range(100 * seed, 100 * seed + length)
            for layer in (0, 1):
                slot.store(layer, 0, normal(4 * seed + layer, 2, length, 4), normal(4 * seed + layer + 2, 2, length, 5))
        return filled

    return fill
