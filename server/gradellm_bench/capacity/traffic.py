"""Random requests: arrival times, lengths, and attribution modes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

EVALUATED_TEXTS = 116  # perturbed texts of one explanation's evaluation with default settings


class Mode(StrEnum):
    """The kind of a request: attribution mode, or an evaluation."""

    PLAIN = "plain"
    PER_TOKEN = "per_token"  # noqa: S105 (a delivery, not a password)
    CHUNKED = "chunked"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class SimulatedRequest:
    """One request.

    Attributes:
        arrival: seconds from the start of the run.
        prompt_tokens: tokens of the prompt.
        answer_tokens: tokens that are generated; of an evaluation, tokens of the completion.
        slots: KV cache slots that it reserves: prompt and longest possible answer.
        mode: its kind.
    """

    arrival: float
    prompt_tokens: int
    answer_tokens: int
    slots: int
    mode: Mode


@dataclass(frozen=True)
class Traffic:
    """Distribution of requests: Poisson arrivals, log-normal lengths.

    Attributes:
        rate: requests a second.
        prompt_tokens: mean prompt length.
        answer_tokens: mean answer length.
        spread: standard deviation of a length's logarithm; 0 for equal lengths.
        max_new_tokens: longest possible answer; as many KV cache slots are reserved.
        context_tokens: the model's context; longer requests are shortened.
        explained: share of requests with attribution.
        chunked: share of these with chunked delivery rather than token by token.
        evaluations: share of requests that are evaluations.
    """

    rate: float
    prompt_tokens: int = 800
    answer_tokens: int = 300
    spread: float = 0.6
    max_new_tokens: int = 1024
    context_tokens: int = 8192
    explained: float = 0.3
    chunked: float = 0.5
    evaluations: float = 0.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"the rate must be above 0 requests a second, was {self.rate}")
        for name in ("prompt_tokens", "answer_tokens", "max_new_tokens"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, was {getattr(self, name)}")
        for name in ("explained", "chunked", "evaluations"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, was {getattr(self, name)}")
        if self.spread < 0:
            raise ValueError(f"the spread must not be negative, was {self.spread}")
        if self.prompt_tokens + self.answer_tokens > self.context_tokens:
            raise ValueError(
                f"prompts of {self.prompt_tokens} and answers of {self.answer_tokens} tokens do not fit a context of "
                f"{self.context_tokens}"
            )

    def requests(self, count: int, seed: int) -> list[SimulatedRequest]:
        """`count` random requests, the same for equal seeds."""
        return list(self._requests(count, np.random.default_rng(seed)))

    def _requests(self, count: int, rng: np.random.Generator) -> Iterator[SimulatedRequest]:
        arrivals = np.cumsum(rng.exponential(1 / self.rate, count))
        answers = np.minimum(self._lengths(self.answer_tokens, count, rng), self.max_new_tokens)
        prompts = np.minimum(self._lengths(self.prompt_tokens, count, rng), self.context_tokens - answers)
        is_evaluation, is_explained, is_chunked = (
            rng.random(count) < share for share in (self.evaluations, self.explained, self.chunked)
        )
        for index in range(count):
            prompt, answer = int(prompts[index]), int(answers[index])
            mode = Mode.PLAIN
            if is_evaluation[index]:
                mode = Mode.EVALUATE
            elif is_explained[index]:
                mode = Mode.CHUNKED if is_chunked[index] else Mode.PER_TOKEN
            longest = answer if mode is Mode.EVALUATE else max(answer, self.max_new_tokens)
            yield SimulatedRequest(
                float(arrivals[index]), prompt, answer, min(self.context_tokens, prompt + longest), mode
            )

    def _lengths(self, mean: int, count: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Log-normal integers of at least 2 with this mean. [count]"""
        drawn = mean * np.exp(self.spread * rng.standard_normal(count) - self.spread**2 / 2)
        lengths: np.ndarray[tuple[int], np.dtype[np.int64]] = np.maximum(2, np.rint(drawn)).astype(np.int64)
        return lengths
