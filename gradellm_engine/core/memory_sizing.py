"""Divides the memory that is free once the model is loaded: KV cache first, then post-hoc methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradellm_engine.errors import ModelLoadError
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.utils.memory import available_bytes

KV_CACHE_SHARE = 0.5  # of the memory that is free after loading
POST_HOC_SHARE = 0.5  # of the rest
MIN_KV_TOKENS = 16


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine's memory is for, and what its process takes now, in bytes.

    Attributes:
        limit: of all together; None for what the machine has.
        weights: of the model.
        packed_weights: copies of weights in the layouts that CPU kernels read.
        kv_cache: of running requests and kept prefixes; taken as it is used.
        methods: methods over whole completions may take.
        resident: the process takes on the machine.
    """

    limit: int | None
    weights: int
    packed_weights: int
    kv_cache: int
    methods: int
    resident: int


def free_bytes(device: torch.device, limit: int | None = None) -> int:
    """Memory that is free on the device that the model runs on, of which the process may take `limit` in all."""
    if device.type != "cuda":
        return available_bytes(limit=limit)
    free = int(torch.cuda.mem_get_info(device)[0])
    return free if limit is None else max(0, min(free, limit - torch.cuda.memory_reserved(device)))


def kv_cache_tokens(model: LoadedModel, max_running: int, kv_bytes: int | None, free: int, limit: int | None) -> int:
    """Tokens that the KV cache holds in `kv_bytes`; by default in KV_CACHE_SHARE of the free memory.

    Raises:
        ModelLoadError: where the shortest request would not fit, or `kv_bytes` do not fit a limit.
    """
    if max_running < 1:
        raise ModelLoadError(f"max_running is {max_running}; at least 1 request must be able to run")
    per_token = model.runner.bytes_per_token
    if kv_bytes is None:
        kv_bytes = int(KV_CACHE_SHARE * free)
        # More would never be used: every running request at full length, and as much again of cached prefixes.
        kv_bytes = min(kv_bytes, 2 * max_running * model.info.context_tokens * per_token)
    elif limit is not None and kv_bytes > free:
        raise ModelLoadError(
            f"a KV cache of {kv_bytes:,} bytes does not fit memory of {limit:,} bytes, of which the model leaves "
            f"{free:,}"
        )
    if kv_bytes < MIN_KV_TOKENS * per_token:
        raise ModelLoadError(
            f"a KV cache of {kv_bytes:,} bytes is too small: a token takes {per_token:,} bytes, and {MIN_KV_TOKENS} "
            "tokens must fit"
        )
    return kv_bytes // per_token


def post_hoc_bytes(requested: int | None, free_after_kv_cache: int) -> int:
    """Memory for post-hoc methods: as requested, by default POST_HOC_SHARE of what the KV cache leaves free.

    Raises:
        ModelLoadError: where it is less than a byte.
    """
    if requested is None:
        return max(1, int(POST_HOC_SHARE * free_after_kv_cache))
    if requested < 1:
        raise ModelLoadError(f"method_bytes is {requested}; methods over whole completions need memory of their own")
    return requested
