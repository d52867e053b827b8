"""Times of a request's tokens and attribution rows."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise

from gradellm_engine.core.outputs import Finished


@dataclass
class Timeline:
    """Times of one request, in seconds from its start.

    Attributes:
        ids: token ids of the completion.
        read: end of the prefill (all but the prompt's last token); None if it cannot be observed.
        tokens: time of each token.
        vectors: time of each token's scores; empty without attribution.
        finished: this engine's last event.
    """

    ids: list[int] = field(default_factory=list)
    read: float | None = None
    tokens: list[float] = field(default_factory=list)
    vectors: list[float] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def first_token(self) -> float:
        """Time to first token."""
        return self.tokens[0]

    @property
    def end(self) -> float:
        """Seconds to the last token or vector."""
        return max(self.tokens[-1:] + self.vectors[-1:])

    @property
    def per_token(self) -> float:
        """Seconds per token after the prefill, its scores included."""
        if self.read is not None:
            return (self.end - self.read) / len(self.tokens)
        return (self.end - self.tokens[0]) / (len(self.tokens) - 1)  # the prefill gave the first one

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in pairwise(self.tokens)]

    @property
    def to_vector(self) -> float | None:
        """Seconds from a token to its scores, the median; None without attribution."""
        if not self.vectors:
            return None
        return statistics.median(vector - token for token, vector in zip(self.tokens, self.vectors, strict=True))


class Stopwatch:
    """Seconds since it was made, without the time it was stopped."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stopped: float | None = None

    def __call__(self) -> float:
        """Seconds."""
        return (time.perf_counter() if self._stopped is None else self._stopped) - self._began

    def stop(self) -> None:
        """Stop counting."""
        self._stopped = time.perf_counter()

    def resume(self) -> None:
        """Continue counting."""
        if self._stopped is not None:
            self._began += time.perf_counter() - self._stopped
            self._stopped = None
