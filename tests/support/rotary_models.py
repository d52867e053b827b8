"""Tiny models with every type of rotary frequencies, and a context beyond the length where some of them change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.tiny_models import save_random_model

SWITCH, CONTEXT = 24, 64

ORIGINAL = {"original_max_position_embeddings": SWITCH}


def longrope(width: int, **more: Any) -> dict[str, Any]:
    """Parameters of a longrope embedding with `width` channels, whose short and long factors differ everywhere."""
    short = [1.0 + 0.1 * i for i in range(width // 2)]
    return {"rope_type": "longrope", "short_factor": short, "long_factor": [3 * factor + 1 for factor in short], **more}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"rope_type": "default"}),
    "linear": ("llama", {"rope_type": "linear", "factor": 3.0}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 3.0}),
    "yarn": ("llama", {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, **ORIGINAL}),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    ),
    "proportional": ("llama", {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    "longrope": ("llama", longrope(16, attention_factor=1.3, **ORIGINAL)),
    "longrope of phi3": ("phi3", longrope(8)),
    "longrope of some layers": (
        "gemma3_text",
        {"full_attention": longrope(16, rope_theta=1e4, **ORIGINAL), "sliding_attention": {"rope_type": "default"}},
    ),
}

LONGROPES = [name for name in CASES if "longrope" in name]


def save(folder: Path, name: str, **overrides: Any) -> Path:
    """Save a random model whose weights make tokens differ, with a context beyond the switch if a cache allows it."""
    family, rope_parameters = CASES[name]
    if "rope_type" in rope_parameters:
        rope_parameters = {"rope_theta": 10000.0, **rope_parameters}
    context = {"max_position_embeddings": SWITCH if name == "dynamic" else CONTEXT}
    own = ORIGINAL if family == "phi3" else {}
    return save_random_model(
        folder, family, seed=1, rope_parameters=rope_parameters, initializer_range=0.15, **context, **own, **overrides
    )


def prompt_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())
