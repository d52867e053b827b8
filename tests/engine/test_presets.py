"""Names of presets: what `recommended` stands for, and which preset some switches are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.params import PRESETS, RECOMMENDED_PRESET, GradEllm, Gradient, Sink
from gradellm_engine.presets import RECOMMENDED, concrete_preset, preset_of


def test_recommended_is_another_name_of_a_preset() -> None:
    assert concrete_preset(RECOMMENDED) == RECOMMENDED_PRESET != RECOMMENDED
    assert PRESETS[RECOMMENDED] is PRESETS[RECOMMENDED_PRESET]
    assert [concrete_preset(name) for name in PRESETS if name != RECOMMENDED] == [
        name for name in PRESETS if name != RECOMMENDED
    ]


def test_where_relevance_is_not_defined_recommended_has_the_true_gradient() -> None:
    other = GradEllm.preset(concrete_preset(RECOMMENDED, has_gates=False))
    assert other.gradient is Gradient.TRUE
    assert replace(other, gradient=Gradient.RELEVANCE) == GradEllm.preset(RECOMMENDED)
    assert concrete_preset("knockout", has_gates=False) == "knockout"


@pytest.mark.parametrize("name", PRESETS)
def test_the_switches_of_a_preset_have_its_own_name(name: str) -> None:
    """However they were chosen, and after their layers became indexes."""
    switches = GradEllm.preset(name)
    assert preset_of(switches, 3) == preset_of(switches.resolved(3), 3) == concrete_preset(name)
    assert preset_of(GradEllm(**PRESETS[name]), 3) == concrete_preset(name)


def test_other_switches_have_no_name() -> None:
    assert preset_of(GradEllm.preset("paper", sink=Sink.EXCLUDE), 3) is None
    assert preset_of(GradEllm.preset("knockout", layers=2), 3) is None
    assert preset_of(GradEllm.preset("knockout", layers=(0, 2)), 3) is None
    assert preset_of(Saliency(), 3) is None


def test_no_two_presets_have_the_same_switches() -> None:
    """Else a provenance could name either."""
    own = [GradEllm.preset(name) for name in PRESETS if name != RECOMMENDED]
    assert len(set(own)) == len(own)
