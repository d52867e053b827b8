"""Rotary frequencies that depend on a sequence's length: longrope and dynamic NTK scaling.

Transformers chooses the rotary frequencies of some models by the longest position of a call (`dynamic_rope_update`).
The engine runs tokens of many sequences in one call and caches keys after rotation, so it chooses for each sequence
what Transformers' full pass over that sequence alone would:

- `longrope`: a sequence of up to `original_max_position_embeddings` tokens, the switch, has the short factors; a longer
  one has the long factors at all its positions. A slot records which its keys were rotated with (`KVSlot.is_long`);
  keys of a sequence that passes the switch are computed again. `RotarySets` gives each token of a pass the factors of
  its own sequence.
- `dynamic` (NTK): past `max_position_embeddings` every further token changes the frequencies of all tokens before it. A
  KV cache cannot be exact there, so the context ends at that length.

All other types (default, linear, yarn, llama3, proportional) have one set of frequencies for all lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.layers.module_patch import Patch

LONGROPE = "longrope"
_FIXED = "default"  # a type whose frequencies do not depend on the length


@dataclass(frozen=True)
class ContextLimit:
    """The longest sequence that a model is served with.

    Attributes:
        num_tokens: prompt and completion together.
        reason: why the context ends there, for models whose rotary frequencies limit it; else empty.
    """

    num_tokens: int
    reason: str = ""


def context_limit(config: Any) -> ContextLimit:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The context of a model: its trained length, or the length up to which its keys can be cached."""
    trained = _trained_length(config)
    for parameters in _rope_parameters(config):
        if "dynamic" in parameters["rope_type"]:
            reason = f"rope_type {parameters['rope_type']} changes all rotary frequencies with each token beyond"
            return ContextLimit(min([trained, *_switches(config)]), reason)
    if len(switches := _switches(config)) > 1:
        reason = f"its layers change from short to long rotary factors at {' and '.join(map(str, switches))} tokens"
        return ContextLimit(switches[0], reason)
    return ContextLimit(trained)


def switch_tokens(config: Any) -> int | None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Tokens up to which a sequence has the short rotary factors; None for models with one set of factors."""
    switches = [switch for switch in _switches(config) if switch < context_limit(config).num_tokens]
    return switches[0] if switches else None


def encode_positions(positions: Iterable[int], *, is_long: bool) -> list[int]:
    """Positions as `RotarySets` takes them: p, or ~p = -1 - p in a sequence that has the long rotary factors.

    The factors travel with the positions, so passes, CUDA graphs and CPU traces need no further input for them.
    """
    return [~position for position in positions] if is_long else list(positions)


def use_rotary_sets(model: nn.Module, switch: int) -> list[Patch]:
    """Have the model's rotary embeddings take encoded positions; factors are short up to `switch` tokens."""
    return [
        _use_rotary_set(model, name, module, switch)
        for name, module in list(model.named_modules())
        if LONGROPE in _rope_types(module)
    ]


def _use_rotary_set(model: nn.Module, name: str, rotary: nn.Module, switch: int) -> Patch:
    rope_type, buffers = rotary.rope_type, dict(rotary.named_buffers(recurse=False))
    model.set_submodule(name, RotarySets(rotary, switch))

    def undo() -> None:
        rotary.rope_type = rope_type
        for buffer, values in buffers.items():
            setattr(rotary, buffer, values)
        model.set_submodule(name, rotary)

    return Patch(name, type(rotary).__name__, RotarySets.__name__, undo)


class RotarySets(nn.Module):
    """A longrope embedding of Transformers with both sets of factors, chosen for each token by its encoded position."""

    def __init__(self, rotary: nn.Module, switch: int) -> None:
        """Take over `rotary`, which then no longer chooses its factors by the longest position of a call."""
        super().__init__()
        self.rotary = rotary
        # As Transformers' own code computes them for a call that ends at the switch, and for one that goes beyond it.
        self._short, self._long = (self._frequencies_for(last) for last in (switch - 1, switch))
        rope_type: Any = rotary.rope_type
        fixed: Any = dict.fromkeys(rope_type, _FIXED) if isinstance(rope_type, dict) else _FIXED
        rotary.rope_type = fixed

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Cosines and sines of encoded positions. [B, T] -> [B, T, width] each"""
        is_long = position_ids < 0
        positions = torch.where(is_long, ~position_ids, position_ids)
        (short_cos, short_sin), (long_cos, long_sin) = (
            self._with(frequencies, x, positions, *args, **kwargs) for frequencies in (self._short, self._long)
        )
        takes_long = is_long[..., None].to(short_cos.device)
        return torch.where(takes_long, long_cos, short_cos), torch.where(takes_long, long_sin, short_sin)

    def _with(
        self,
        frequencies: dict[str, Tensor],
        x: Tensor,
        positions: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        for name, values in frequencies.items():
            setattr(self.rotary, name, values)
        both: tuple[Tensor, Tensor] = self.rotary(x, positions, *args, **kwargs)
        return both

    def _frequencies_for(self, last: int) -> dict[str, Tensor]:
        """The inverse frequencies that `rotary` uses in a call whose longest position is `last`, by buffer."""
        buffers = dict(self.rotary.named_buffers(recurse=False))
        device = next(iter(buffers.values())).device
        rope_type: Any = self.rotary.rope_type
        kinds = [{"layer_type": each} for each in rope_type] if isinstance(rope_type, dict) else [{}]
        for kind in kinds:
            self.rotary(torch.zeros((1, 1, 1), device=device), torch.tensor([[last]], device=device), **kind)
        buffers = dict(self.rotary.named_buffers(recurse=False))
        return {
            name: values.clone()
            for name, values in buffers.items()
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
        }


def _rope_types(module: nn.Module) -> list[str]:
    """The rope types of a rotary embedding: one, or one per kind of layer. Empty for other modules."""
    found: Any = getattr(module, "rope_type", None)
    return list(found.values()) if isinstance(found, dict) else [] if found is None else [found]


def _trained_length(config: Any) -> int:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Tokens of the longest sequence that a model was trained for."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", 0) or 2**31 - 1)


def _switches(config: Any) -> list[int]:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The lengths at which some layers' factors change, below the model's trained length; ascending."""
    longropes = [parameters for parameters in _rope_parameters(config) if parameters["rope_type"] == LONGROPE]
    trained = _trained_length(config)
    lengths = {int(parameters.get("original_max_position_embeddings") or trained) for parameters in longropes}
    return sorted(length for length in lengths if length < trained)


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The parameters of each of a model's rotary embeddings: one for all layers, or one for each kind of layer."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    each = [found] if "rope_type" in found else [value for value in found.values() if isinstance(value, dict)]
    yield from ({"rope_type": _FIXED} | parameters for parameters in each)
