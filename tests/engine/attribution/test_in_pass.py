"""Methods within the pass: every one that the registry lists can be computed."""

from __future__ import annotations

from dataclasses import fields

from gradellm_engine.attention.fused import MapForm, MapKind, map_form
from gradellm_engine.attribution.in_pass import in_pass_method
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.params import GradEllm, LayerSwitches

# The switches that `grad_ellm.layer_maps` reads, and those that only `layer_scores` and `heat_map` read.
SWITCHES_OF_MAPS = {"loosening", "similarity", "rotary", "magnitude", "rectify", "sink"}
SWITCHES_OF_SCORES = {"layers", "normalise_over"}
SWITCHES_OF_GRADIENTS = {"gradient"}  # that the maps are computed from


def test_every_registered_method_within_the_pass_has_its_functions() -> None:
    in_pass = [method for method in METHODS.values() if method.explain is None and method.scores is None]
    assert len(in_pass) >= 3
    for method in in_pass:
        assert issubclass(method.switches, LayerSwitches)
        assert in_pass_method(method.switches()) is not None


def test_every_switch_of_grad_ellm_is_known_to_the_fused_kernels() -> None:
    """A switch that changes the maps must be read by `map_form`, or a GPU ignores it silently."""
    assert {field.name for field in fields(GradEllm)} == SWITCHES_OF_MAPS | SWITCHES_OF_SCORES | SWITCHES_OF_GRADIENTS
    assert map_form(GradEllm()) == MapForm(MapKind.PRODUCTS)
