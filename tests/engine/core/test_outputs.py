"""What the start of a request tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_engine import AttributionSettings, Engine, GradEllm, Sampling, Sink, Started
from gradellm_engine.attribution.grad_sam import GradSam


@pytest.mark.parametrize(
    ("attribution", "unscored"),
    [
        (None, ()),
        (AttributionSettings(), ()),
        (AttributionSettings(GradSam()), ()),
        (AttributionSettings(GradEllm(sink=Sink.EXCLUDE)), (0,)),
    ],
)
def test_tokens_that_are_no_sources(
    model_path: Callable[[str], Path], attribution: AttributionSettings | None, unscored: tuple[int, ...]
) -> None:
    prompt = Engine.load(str(model_path("llama"))).tokenize("Once")
    assert Started(prompt, (), Sampling(), attribution).unscored_tokens == unscored
