"""The size of batches does not change results."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.perturbation.lime import Lime
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_batches_change_nothing(case: MakeCase, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    subject = case("llama", "float32")
    expected = subject.rows(Occlusion()), subject.rows(Lime(samples=20))
    monkeypatch.setattr(post_hoc.CompletionModel, "sequences_per_pass", lambda self, *, graph=False: at_once)
    for actual, reference in zip((subject.rows(Occlusion()), subject.rows(Lime(samples=20))), expected, strict=True):
        for row, other in zip(actual, reference, strict=True):
            assert relative_error(row, other.double()) <= 1e-5
