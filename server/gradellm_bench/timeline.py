"""When a run told what."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise

from gradellm_engine.core.outputs import Finished


@dataclass
class Timeline:
    """One request's run, in seconds from its start.

    Attributes:
        ids: the tokens of the completion.
        read: when the prompt but its last token had been read; None where that cannot be told from outside.
        tokens: when each token was there.
        vectors: when each token's scores were there; empty without attribution.
        finished: what this engine says at the end.
    """

    ids: list[int] = field(default_factory=list)
    read: float | None = None
    tokens: list[float] = field(default_factory=list)
    vectors: list[float] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return self.tokens[0]

    @property
    def end(self) -> float:
        """Seconds to the last token or vector."""
        return max(self.tokens[-1:] + self.vectors[-1:])

    @property
    def per_token(self) -> float:
        """Seconds a token once the prompt is read, its scores included."""
        if self.read is not None:
            return (self.end - self.read) / len(self.tokens)
        return (self.end - self.tokens[0]) / (len(self.tokens) - 1)  # reading the prompt gave the first one

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
    """Seconds since it was made, but for those in which it stood."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stopped: float | None = None

    def __call__(self) -> float:
        """Seconds."""
        return (time.perf_counter() if self._stopped is None else self._stopped) - self._began

    def stop(self) -> None:
        """Stand."""
        self._stopped = time.perf_counter()

    def go_on(self) -> None:
        """Go on after standing."""
        if self._stopped is not None:
            self._began += time.perf_counter() - self._stopped
            self._stopped = None
