"""Rotary frequencies that depend on the length of a sequence, and how long a sequence may be because of them.

Transformers chooses some models' rotary frequencies by the longest position of a call (`dynamic_rope_update`). The
engine runs many sequences in one call and keeps keys after rotation, so it must know where that happens:

- `dynamic` (NTK): past `max_position_embeddings` every further token changes the frequencies of all tokens before it. A
  KV cache cannot be exact there, so the context ends at that length.
- `longrope`: up to `original_max_position_embeddings` tokens a sequence has the short factors, beyond it the long ones.

All other types (default, linear, yarn, llama3, proportional) have one set of frequencies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ContextLimit:
    """The longest sequence that a model is served with.

    Attributes:
        num_tokens: prompt and completion together.
        reason: why it is no longer, for models whose rotary frequencies decide it; empty for others.
    """

    num_tokens: int
    reason: str = ""


def context_limit(config: Any) -> ContextLimit:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The context of a model: what it was made for, or the length up to which its rotary frequencies are fixed."""
    text = config.get_text_config(decoder=True)
    made_for = int(getattr(text, "max_position_embeddings", 0) or 2**31 - 1)
    limits = [ContextLimit(made_for)]
    for parameters in _rope_parameters(text):
        rope_type = str(parameters.get("rope_type", "default"))
        if "dynamic" in rope_type:
            reason = f"its rotary frequencies (rope_type {rope_type}) change with every token beyond {made_for}"
            limits.append(ContextLimit(made_for, reason))
        elif (
            rope_type == "longrope"
            and (switch := int(parameters.get("original_max_position_embeddings") or made_for)) < made_for
        ):
            reason = f"its rotary frequencies (rope_type {rope_type}) are others for sequences beyond {switch} tokens"
            limits.append(ContextLimit(switch, reason))
    return min(limits, key=lambda limit: (limit.num_tokens, not limit.reason))


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The parameters of each of a model's rotary embeddings: one for all layers, or one a kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    yield from [found] if "rope_type" in found else [each for each in found.values() if isinstance(each, dict)]
