"""Fields of requests that say how tokens are sampled: OpenAI's, and vLLM's at the same level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradellm_gateway.fields import FIELDS, Check

__all__ = ["MAX_SEED", "SAMPLING_FIELDS", "SAMPLING_NAMES", "sampling_keywords", "seed_of_choice"]

MAX_SEED = 2**63 - 1
_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "ignore_eos",
    "skip_special_tokens",
)
SAMPLING_NAMES = {**{name: name for name in _SAME_NAME}, "min_new_tokens": "min_tokens"}
"""The SDK's keyword -> the field's name."""
SAMPLING_FIELDS: dict[str, Check] = {name: FIELDS[name] for name in SAMPLING_NAMES.values()}
"""Checks by field name."""


def sampling_keywords(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the SDK's keywords for the fields of a checked request."""
    keywords = {keyword: body[name] for keyword, name in SAMPLING_NAMES.items() if body.get(name) is not None}
    if keywords.get("top_k") == -1:  # all tokens, as in vLLM
        keywords["top_k"] = 0
    return keywords


def seed_of_choice(keywords: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the keyword of choice `index` of a request: with a seed, it has the seed + index."""
    seed = keywords.get("seed")
    if seed is None or not 0 <= seed <= MAX_SEED:  # which the server refuses
        return {}
    return {"seed": (seed + index) % (MAX_SEED + 1)}
