"""Path gradients in little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("memory", [1, 10**9])
def test_turns_do_not_change_the_scores(case: MakeCase, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """Where memory is short, sequences and steps run in turns."""
    subject = case("llama")
    expected = subject.rows(IntegratedGradients(steps=5))
    monkeypatch.setattr(
        post_hoc.CompletionModel, "sequences_per_pass", lambda self, *, graph=False: 1 if memory == 1 else 7
    )
    original = post_hoc.CompletionModel.__init__

    def short(self: Any, *args: Any) -> None:
        original(self, *args)
        self.memory = memory

    monkeypatch.setattr(post_hoc.CompletionModel, "__init__", short)
    for row, other in zip(subject.rows(IntegratedGradients(steps=5)), expected, strict=True):
        assert relative_error(row, other) <= 1e-6
