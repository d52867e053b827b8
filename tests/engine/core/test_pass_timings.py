"""How many prompt tokens fit between two tokens of a stream, by measured durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.core.pass_timings import (
    GAP_MARGIN,
    MAX_PREFILL_CHUNK_TOKENS,
    MIN_PREFILL_CHUNK_TOKENS,
    PassTimings,
)

SECONDS = st.floats(1e-4, 1.0)


def test_the_first_duration_is_the_average_and_later_ones_move_it() -> None:
    timings = PassTimings().after_step(1.0).after_cycle(2.0).after_evaluation(30.0, 10)
    assert (timings.step, timings.cycle, timings.evaluation_token) == (1.0, 2.0, 3.0)
    timings = timings.after_step(2.0)
    assert timings.step == pytest.approx(1.2)
    assert timings.cycle == 2.0


def test_long_prompts_count_more_than_short_ones() -> None:
    """A pass over few tokens takes as long for its weights as for them."""
    timings = PassTimings(prefill_token=1.0)
    few, many = timings.after_prefill(8.0, 4), timings.after_prefill(1024.0, 512)
    assert 1.0 < few.prefill_token < many.prefill_token < 2.0


def test_prompts_take_what_a_decode_step_does_not() -> None:
    timings = PassTimings(step=0.1)
    assert timings.prefill_seconds(0.5, has_step=True) == pytest.approx(0.4)
    assert timings.prefill_seconds(0.12, has_step=True) == pytest.approx(0.06)  # half at least
    assert timings.prefill_seconds(0.5, has_step=False) == 0.5


@given(st.sampled_from(["cpu", "cuda"]), SECONDS, SECONDS, SECONDS)
def test_prompts_fit_the_gap(processor: str, max_gap: float, cycle: float, prefill_token: float) -> None:
    num_tokens = PassTimings(cycle=cycle, prefill_token=prefill_token).num_prefill_tokens(max_gap, processor)
    least, most = MIN_PREFILL_CHUNK_TOKENS[processor], MAX_PREFILL_CHUNK_TOKENS[processor]
    assert least <= num_tokens <= most
    if num_tokens > least:
        assert cycle + num_tokens * prefill_token <= GAP_MARGIN * max_gap + 1e-9
    if num_tokens < most:
        assert cycle + (num_tokens + 1) * prefill_token > GAP_MARGIN * max_gap - 1e-9


def test_prompts_are_large_before_any_was_measured() -> None:
    assert PassTimings().num_prefill_tokens(0.001, "cpu") == MAX_PREFILL_CHUNK_TOKENS["cpu"]
    assert PassTimings(cycle=1.0).seconds_left(0.5) == 0.0
