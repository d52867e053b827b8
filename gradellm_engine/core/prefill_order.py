"""The order in which prompts are prefilled: the shortest first, as their mean time to the first token is shortest then.

In every fifth pass the prompt that was passed over most often comes first, so that none waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

PASSES_PER_TURN = 5  # of which one begins with the prompt that was passed over most often


class WaitingPrompt(Protocol):
    """A prompt that is not prefilled yet.

    Attributes:
        num_passed_over: passes with prompts since it was last taken.
    """

    num_passed_over: int

    @property
    def num_prefill_left(self) -> int:
        """Tokens that are still to be prefilled."""


Prompt = TypeVar("Prompt", bound=WaitingPrompt)


def prefill_order(prompts: Sequence[Prompt], num_passes: int) -> list[Prompt]:
    """The prompts in the order in which a pass takes them, until it is full; `num_passes` were before it.

    Equally long ones stay in their order.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.num_prefill_left)
    if len(ordered) > 1 and num_passes % PASSES_PER_TURN == PASSES_PER_TURN - 1:
        passed_over = max(ordered, key=lambda prompt: prompt.num_passed_over)
        ordered.remove(passed_over)
        ordered.insert(0, passed_over)
    return ordered


def count_passed_over(prompts: Sequence[WaitingPrompt], taken: Sequence[WaitingPrompt]) -> None:
    """After a pass over some prompts that took `taken`, wholly or in part."""
    for prompt in prompts:
        prompt.num_passed_over = 0 if prompt in taken else prompt.num_passed_over + 1
