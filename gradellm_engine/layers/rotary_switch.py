"""Rotary frequencies that depend on the length of a sequence: which models have them, and what is done about it.

Transformers chooses some models' rotary frequencies by the longest position of a call (`dynamic_rope_update`). The
engine runs tokens of many sequences in one call and keeps keys after rotation, so it chooses for each sequence what
Transformers' full pass over that sequence alone would have:

- `longrope`: up to `original_max_position_embeddings` tokens, the switch, a sequence has the short factors, beyond it
  the long ones for all its positions. A slot says which its keys were made with (`KVSlot.is_long`), and where a
  sequence passes the switch its keys are made anew. `RotarySets` gives each token of a pass its own sequence's factors.
- `dynamic` (NTK): past `max_position_embeddings` every further token changes the frequencies of all tokens before it. A
  KV cache cannot be exact there, so the context ends at that length.

All other types (default, linear, yarn, llama3, proportional) have one set of frequencies, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LONGROPE = "longrope"
_FIXED = "default"  # a type whose frequencies Transformers never chooses anew


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
    """The context of a model: what it was made for, or the length up to which its keys can be kept."""
    made_for = _made_for(config)
    for parameters in _rope_parameters(config):
        if "dynamic" in parameters["rope_type"]:
            reason = f"rope_type {parameters['rope_type']} changes all rotary frequencies with each token beyond"
            return ContextLimit(min([made_for, *_switches(config)]), reason)
    if len(switches := _switches(config)) > 1:
        reason = f"its layers change from short to long rotary factors at {' and '.join(map(str, switches))} tokens"
        return ContextLimit(switches[0], reason)
    return ContextLimit(made_for)


def switch_tokens(config: Any) -> int | None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Tokens up to which a sequence has the short rotary factors; None where no sequence has others."""
    switches = [switch for switch in _switches(config) if switch < context_limit(config).num_tokens]
    return switches[0] if switches else None


def encode_positions(positions: Iterable[int], *, is_long: bool) -> list[int]:
    """Positions as the model takes them: p, or ~p (which is -1 - p) in a sequence that has the long rotary factors.

    So every way that tokens go to the model tells their factors, too: passes, recorded steps and straight lines.
    """
    return [~position for position in positions] if is_long else list(positions)


def use_rotary_sets(model: nn.Module, switch: int) -> None:
    """Have the model's rotary embeddings take coded positions."""
    for name, module in list(model.named_modules()):
        if LONGROPE in _rope_types(module):
            model.set_submodule(name, RotarySets(module, switch))


class RotarySets(nn.Module):
    """A rotary embedding of Transformers with both its sets of factors; each token has those that its position says."""

    def __init__(self, rotary: nn.Module, switch: int) -> None:
        """`rotary` no longer chooses for itself by the longest position of a call."""
        super().__init__()
        self.rotary = rotary
        # What Transformers' own code makes of a call that ends at the switch, and of one that goes beyond it.
        self._short, self._long = (self._frequencies_for(last) for last in (switch - 1, switch))
        of: Any = rotary.rope_type
        fixed: Any = dict.fromkeys(of, _FIXED) if isinstance(of, dict) else _FIXED
        rotary.rope_type = fixed

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Cosines and sines of coded positions. [B, T] -> [B, T, width] each"""
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
    """The rope types of a rotary embedding: one, or one for each kind of layer; none of other modules."""
    found: Any = getattr(module, "rope_type", None)
    return list(found.values()) if isinstance(found, dict) else [] if found is None else [found]


def _made_for(config: Any) -> int:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Tokens that a model was made for."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", 0) or 2**31 - 1)


def _switches(config: Any) -> list[int]:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The lengths at which some layers' factors become others, within what the model was made for; ascending."""
    longropes = [each for each in _rope_parameters(config) if each["rope_type"] == LONGROPE]
    made_for = _made_for(config)
    found = {int(each.get("original_max_position_embeddings") or made_for) for each in longropes}
    return sorted(switch for switch in found if switch < made_for)


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """The parameters of each of a model's rotary embeddings: one for all layers, or one for each kind of layer."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    each = [found] if "rope_type" in found else [its for its in found.values() if isinstance(its, dict)]
    yield from ({"rope_type": _FIXED} | its for its in each)
