"""Random scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gradellm_engine.methods.random import Random
from support.methods.reference_case import COMPLETION, Case, scores_of

MakeCase = Callable[..., Case]


def test_random_is_a_pure_function_of_seed_and_step(case: MakeCase) -> None:
    subject = case("llama")
    rows = subject.rows(Random(seed=5))
    again = subject.steps(Random(seed=5), COMPLETION[:2])
    assert [row.tolist() for row in rows[:2]] == [scores_of(step).tolist() for step in again]
    assert rows[0].tolist() != rows[1][: len(rows[0])].tolist()
    assert rows[0].tolist() != subject.rows(Random())[0].tolist()
    numbers = torch.cat(subject.rows(Random(), list(range(70, 90))))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.05)
