"""Launches that are repeated in one call."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.cpu_kernels.team import Launch, LaunchSequence, recording

pytest.importorskip("numba")
from gradellm_engine.cpu_kernels import elementwise
from gradellm_engine.cpu_kernels.sequence import SEQUENCE


def test_each_launch_sees_what_those_before_it_wrote() -> None:
    """A chain of many, with more tasks than threads; repeated with other inputs."""
    x, count = torch.zeros(3, 2**15), 30
    launches: list[tuple[int, Launch]] = []
    totals = [x]
    with recording(lambda kernel, integers: launches.append((kernel, integers))):
        for _ in range(count):
            totals.append(elementwise.add(totals[-1], totals[-1]))
    assert len(launches) == count
    sequence = LaunchSequence(launches, SEQUENCE)
    for value in (1.0, 3.0):
        x.fill_(value)
        sequence.run()
        assert totals[-1].eq(value * 2.0**count).all()


def test_nothing_is_recorded_afterwards() -> None:
    launches: list[int] = []
    x = torch.ones(4)

    def fails() -> None:
        with recording(lambda kernel, integers: launches.append(kernel)):
            elementwise.add(x, x)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails()
    elementwise.add(x, x)
    assert len(launches) == 1
