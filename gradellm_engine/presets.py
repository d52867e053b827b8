"""The names of presets: which preset `recommended` stands for, and which preset some switches are."""

from __future__ import annotations

from dataclasses import replace

from gradellm_engine.params import PRESETS, RECOMMENDED_PRESET, GradEllm, Switches

RECOMMENDED = "recommended"
RECOMMENDED_FOR_EXPERTS = "head_abs_no_sink"  # the same but for the gradient, which needs the family's gates


def concrete_preset(name: str, *, has_gates: bool = True) -> str:
    """A preset's own name; for `recommended` that of the preset which it stands for in this version.

    Args:
        name: the preset.
        has_gates: whether relevance is defined for the model's family (`Family.gates`).
    """
    if name != RECOMMENDED:
        return name
    return RECOMMENDED_PRESET if has_gates else RECOMMENDED_FOR_EXPERTS


def preset_of(switches: Switches, num_layers: int) -> str | None:
    """The own name of the preset with these switches, over all `num_layers` layers; None if there is none."""
    if not isinstance(switches, GradEllm) or switches.selected_layers(num_layers) != tuple(range(num_layers)):
        return None
    values = replace(switches, layers=None)
    return next((name for name in PRESETS if name != RECOMMENDED and GradEllm.preset(name) == values), None)
