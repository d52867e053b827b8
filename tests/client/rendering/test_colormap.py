"""Colours of scores are readable and monotonic."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.rendering.colormap import Theme, ramp
from gradellm.rendering.heatmap import Passage, Span, heat_map
from gradellm.rendering.terminal import Style


def luminance(rgb: tuple[int, ...]) -> float:
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["dark", "light"])
@given(share=st.floats(-1, 1).filter(lambda share: abs(share) > 0.03))
def test_every_colour_is_readable(theme: Theme, share: float) -> None:
    drawn = heat_map([Passage("", "ab", (Span(0, 1, 0), Span(1, 2, 1)))], {0: 1.0, 1: share}, Style(40, True, theme))
    for found in re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)", drawn):
        numbers = tuple(map(int, found))
        low, high = sorted((luminance(numbers[:3]), luminance(numbers[3:])))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_ramp_runs_one_way(theme: Theme, sign: int) -> None:
    steps = [luminance(ramp(sign * step / 50, theme)) for step in range(1, 51)]
    assert steps == sorted(steps, reverse=theme == "light")
