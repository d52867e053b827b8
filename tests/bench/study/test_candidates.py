"""The methods of the study, by name."""

from __future__ import annotations

import pytest

from gradellm_bench.study.candidates import BASELINES, CANDIDATES, chosen
from gradellm_engine import GradEllm


def test_names_say_what_a_method_is() -> None:
    assert CANDIDATES["paper"] == GradEllm()
    assert CANDIDATES["knockout"] == GradEllm.preset("knockout")
    for name, method in CANDIDATES.items():
        assert isinstance(method, GradEllm) or name.startswith(("attention", "grad_sam", *BASELINES))
        assert method.excludes_sink == name.endswith("_no_sink")
    assert len(set(CANDIDATES.values())) >= len(CANDIDATES) - 2  # no two are the same, but for names of presets
    assert chosen(None) == CANDIDATES
    assert list(chosen(["positive", "saliency"])) == ["positive", "saliency"]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="'papr' is not a method of the study; it has paper"):
        chosen(["papr"])
