"""The shortest prompt comes first, and none waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.core.prefill_order import PASSES_PER_TURN, count_passed_over, prefill_order


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
