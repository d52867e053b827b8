"""How many prompt tokens fit between two tokens of a stream, by measured durations, and of which prompts they are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.core.scheduling.pass_timings import (
    GAP_MARGIN,
    MAX_PREFILL_CHUNK_TOKENS,
    MIN_PREFILL_CHUNK_TOKENS,
    PASSES_PER_TURN,
    PassTimings,
    count_passed_over,
    prefill_order,
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


# The order of prompts ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Prompt:
    num_prefill_left: int
    num_passed_over: int = 0


def run(prompts: list[Prompt], room: int, num_passes: int) -> list[Prompt]:
    """One pass; the prompts that it took."""
    taken = []
    for prompt in prefill_order(prompts, num_passes):
        if not room:
            break
        count = min(room, prompt.num_prefill_left)
        room, prompt.num_prefill_left = room - count, prompt.num_prefill_left - count
        taken.append(prompt)
    count_passed_over(prompts, taken)
    return taken


def test_prompts_of_one_length_end_one_after_the_other() -> None:
    """And not all at the end, as they would if passes took a part of each in turn."""
    prompts, ends = [Prompt(40) for _ in range(4)], []
    for num_passes in range(8):
        run([prompt for prompt in prompts if prompt.num_prefill_left], 20, num_passes)
        ends.append(sum(not prompt.num_prefill_left for prompt in prompts))
    assert ends == [0, 1, 1, 2, 2, 3, 3, 4]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.lists(st.integers(1, 40), max_size=60))
def test_no_prompt_waits_for_ever(lengths: list[int], arrivals: list[int]) -> None:
    """Short ones keep arriving: each prompt gets its turn after a few passes, and those that wait as long as it."""
    waiting = [Prompt(length) for length in lengths]
    most = 0
    for num_passes, arrival in enumerate(arrivals):
        waiting.append(Prompt(arrival))
        most = max(most, len(waiting))
        run(waiting, 32, num_passes)
        waiting = [prompt for prompt in waiting if prompt.num_prefill_left]
        assert all(prompt.num_passed_over <= PASSES_PER_TURN * most for prompt in waiting)


def test_a_long_prompt_advances_in_every_fifth_pass() -> None:
    long = Prompt(1000)
    turns = [long in run([long, Prompt(10), Prompt(10)], 20, num_passes) for num_passes in range(10)]
    assert turns == 2 * ([False] * 4 + [True])
