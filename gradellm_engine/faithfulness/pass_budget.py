"""The limits of an evaluation's passes, and how much of its work is done."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_TOKENS = 512  # of the first pass: no pass has been timed before it
PASSES_PER_BATCH = 4  # of the largest size: a batch of perturbed texts is this large before the first of them runs


@dataclass
class PassBudget:
    """Limits of one pass. The scheduler adjusts `tokens` between passes.

    Attributes:
        max_tokens: tokens of all sequences of a pass for which there is memory.
        max_sequences: sequences of a pass for which there is memory, however short: each needs a copy of the shared
            prefix's keys and values (one layer at a time) and a next-token distribution.
        tokens: tokens of the next pass, by the time that passes take. A pass has one sequence at least.
        used: tokens of all passes so far.
        is_steady: whether passes are as large as memory allows, however long they take. The texts of a pass, and with
            them the last digits of the results, then depend on the request alone.
    """

    max_tokens: int
    max_sequences: int
    used: int = 0
    is_steady: bool = False

    def __post_init__(self) -> None:
        self.tokens = min(self.max_tokens, FIRST_TOKENS)

    @property
    def next_tokens(self) -> int:
        """The most tokens of the next pass."""
        return self.max_tokens if self.is_steady else self.tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of perturbed texts to collect before they run: enough for full passes of equally long texts."""
        return PASSES_PER_BATCH * self.max_tokens


class ProgressTracker:
    """The share of an evaluation's work that is done, counted in tokens that passes read.

    Attributes:
        budget: counts the tokens of perturbed texts.
        total: estimate of all tokens that will be read.
    """

    def __init__(self, budget: PassBudget, total: float) -> None:
        self.budget, self.total = budget, total
        self._explained = 0.0  # tokens read by methods that have ended

    def share(self, method_tokens: float = 0.0) -> float:
        """The share done, in [0, 1], where the method that runs has read `method_tokens`."""
        return min(1.0, (self._explained + method_tokens + self.budget.used) / max(1.0, self.total))

    def end_method(self, tokens: float) -> None:
        """Count the tokens of a method that has ended."""
        self._explained += tokens
