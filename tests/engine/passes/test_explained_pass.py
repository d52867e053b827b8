"""An explained pass: one backward pass, of which heat maps are the result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradellm_engine.passes.base import Target
from gradellm_engine.passes.explained_pass import ExplainedPass

TARGETS = [Target(7, 3), None, Target(9)]


class OneMap:
    """A pass with one heat map."""

    def heat_maps(self) -> list[Tensor]:
        return [torch.ones(1, 2)]


def explained(calls: list[tuple[list[list[int]], list[list[float]]]]) -> ExplainedPass:
    def backward(ids: Tensor, signs: Tensor) -> None:
        calls.append((ids.tolist(), signs.tolist()))

    run: Any = OneMap()
    return ExplainedPass(torch.zeros(3, 10), run, backward)


def test_the_backward_pass_runs_once_with_targets_and_signs() -> None:
    calls: list[Any] = []
    result = explained(calls)
    for _ in range(2):
        (heat_map,) = result.heat_maps(TARGETS)
        assert torch.equal(heat_map, torch.ones(1, 2))
    assert calls == [([[7, 3], [0, 0], [9, 0]], [[1, -1], [0, 0], [1, 0]])]


def test_a_cpu_starts_nothing_before_heat_maps_are_wanted() -> None:
    calls: list[Any] = []
    result = explained(calls)
    result.start(TARGETS)
    assert not calls
    result.heat_maps(TARGETS)
    assert len(calls) == 1


def test_a_pass_whose_backward_pass_has_run() -> None:
    run: Any = OneMap()
    assert len(ExplainedPass(torch.zeros(3, 10), run, None).heat_maps(TARGETS)) == 1
