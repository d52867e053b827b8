"""Costs as sums of products."""

from __future__ import annotations

from gradellm_engine.methods.base import Passes
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients


def test_passes_are_sums_of_products() -> None:
    passes = Passes(((1, ""), (2, "m"), ("steps", "n")))
    assert str(passes) == "1 + 2 m + steps n"
    assert passes.count(IntegratedGradients(steps=7), 10, 3) == 1 + 20 + 21
    assert (str(Passes()), Passes().count(IntegratedGradients(), 1, 1)) == ("0", 0)
    assert str(Passes(((1, "n"),))) == "n"
