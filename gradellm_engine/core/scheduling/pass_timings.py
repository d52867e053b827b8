"""How long passes take, measured as they run; how many prompt tokens fit between two tokens of a stream, and whose.

Prompt tokens that a decode step takes along delay the running streams' next tokens. How many it may take follows from
the longest gap between tokens that the operator allows: few prompts a pass read the weights more often, many make the
gaps longer.

The shortest prompt comes first, as the mean time to the first token is shortest then. In every fifth pass the prompt
that was passed over most often comes first, so that none waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

DEFAULT_MAX_GAP_SECONDS = 1.0
GAP_MARGIN = 0.8  # of the longest gap that is planned for: passes vary, and attention takes longer in long contexts
# Tokens by device. Prompt tokens of one pass: enough for throughput, few enough that a cancelled request stops soon.
MAX_PREFILL_CHUNK_TOKENS = {"cpu": 512, "cuda": 2048}
# Prompt tokens of one pass while other requests decode. A GPU pass over fewer tokens takes as long as over 512.
MIN_PREFILL_CHUNK_TOKENS = {"cpu": 16, "cuda": 512}
SMOOTHING = 0.2  # weight of the last value in a moving average
HALF_WEIGHT_TOKENS = 128  # a pass of so many prompt tokens has half the weight of a very long one
PASSES_PER_TURN = 5  # of which one begins with the prompt that was passed over most often


@dataclass(frozen=True)
class PassTimings:
    """Moving averages of durations, in seconds; 0 before the first.

    Attributes:
        step: a decode step until its tokens are there.
        cycle: all passes between two tokens of a running stream, without prompts.
        prefill_token: a token of a prompt.
        evaluation_token: a token of a perturbed text.
    """

    step: float = 0.0
    cycle: float = 0.0
    prefill_token: float = 0.0
    evaluation_token: float = 0.0

    def after_step(self, seconds: float) -> PassTimings:
        """After a decode step."""
        return replace(self, step=_average(self.step, seconds))

    def after_cycle(self, seconds: float) -> PassTimings:
        """After all passes of a scheduler step, the time of its prompts left out."""
        return replace(self, cycle=_average(self.cycle, seconds))

    def after_prefill(self, seconds: float, num_tokens: int) -> PassTimings:
        """After a pass with prompts; `seconds` are those that its prompts took."""
        # A pass over few tokens takes as long for its weights as for them, and would count too much.
        weight = SMOOTHING * 2 * num_tokens / (num_tokens + HALF_WEIGHT_TOKENS)
        return replace(self, prefill_token=_average(self.prefill_token, seconds / num_tokens, weight))

    def after_evaluation(self, seconds: float, num_tokens: int) -> PassTimings:
        """After a batch of an evaluation."""
        return replace(self, evaluation_token=_average(self.evaluation_token, seconds / num_tokens))

    def prefill_seconds(self, pass_seconds: float, *, has_step: bool) -> float:
        """Of the duration of a pass with prompts, what its prompts took: all that a decode step does not take."""
        # Half at least: a step in a pass may be shorter than the average of those by themselves.
        return max(pass_seconds - self.step, pass_seconds / 2) if has_step else pass_seconds

    def seconds_left(self, max_gap: float) -> float:
        """What a gap between two tokens of a stream has room for, beside the passes of the streams themselves."""
        return max(0.0, GAP_MARGIN * max_gap - self.cycle)

    def num_prefill_tokens(self, max_gap: float, processor: str) -> int:
        """How many prompt tokens a pass takes while other requests decode."""
        most, least = MAX_PREFILL_CHUNK_TOKENS[processor], MIN_PREFILL_CHUNK_TOKENS[processor]
        if not self.prefill_token:
            return most
        return max(min(least, most), min(most, int(self.seconds_left(max_gap) / self.prefill_token)))


def _average(average: float, value: float, weight: float = SMOOTHING) -> float:
    """The exponential moving average after another value; the first value starts it."""
    return value if average == 0 else (1 - weight) * average + weight * value


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
