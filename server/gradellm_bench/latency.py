"""Latency of one request at a time, for every backend on the same prompts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from gradellm_bench.backends import Backend, decode_in_turns
from gradellm_bench.models import BenchModel
from gradellm_bench.timeline import Timeline

SLOW_ROUNDS, SLOW_TOKENS = 3, 2
Progress = Callable[[str], None]


@dataclass
class Latency:
    """One backend at one prompt length: milliseconds, an entry a round.

    Attributes:
        backend: the backend's name.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens decoded in a round.
        first_token: time to first token.
        per_token: time per token, its scores included.
        to_vector: from a token to its scores, the round's median; empty without attribution.
        floor: lower bound of `per_token` by memory bandwidth (`Backend.floor`); None if the work grows with the prompt.
    """

    backend: str
    prompt_tokens: int
    new_tokens: int
    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    to_vector: list[float] = field(default_factory=list)
    floor: float | None = None

    def over(self, other: Latency) -> float:
        """Cost of a token relative to the other's: the median of the rounds' ratios."""
        rounds = zip(self.per_token, other.per_token, strict=False)  # slow backends have fewer rounds
        return statistics.median(seconds / reference for seconds, reference in rounds)

    def add(self, timeline: Timeline) -> None:
        """Add a round."""
        self.first_token.append(1e3 * timeline.first_token)
        self.per_token.append(1e3 * timeline.per_token)
        if (seconds := timeline.to_vector) is not None:
            self.to_vector.append(1e3 * seconds)


def latencies(
    bench_model: BenchModel,
    backends: Sequence[Backend],
    *,
    prompt_lengths: Sequence[int],
    new_tokens: int,
    rounds: int,
    bandwidth: float,
    progress: Progress,
) -> Iterator[list[Latency]]:
    """All backends at each prompt length, in turns, so that other load slows all of them alike.

    This engine's backends alternate every few tokens, the other backends every round.

    Raises:
        RuntimeError: if backends decode different tokens in float32 or better, so that they cannot be compared.
    """
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    for length in prompt_lengths:
        measured = {
            backend.name: Latency(
                backend.name,
                length,
                SLOW_TOKENS if backend.is_slow else new_tokens,
                floor=_milliseconds(backend.floor(bench_model, length + new_tokens // 2, 1, bandwidth)),
            )
            for backend in backends
        }
        for round_number in range(-1, rounds):  # the first only warms up
            prompt = bench_model.prompt(rng, length)
            ids: dict[str, list[int]] = {}
            engine_backends = [backend for backend in backends if backend.mode is not None]
            if engine_backends:
                names = ", ".join(backend.name for backend in engine_backends)
                progress(f"{length} tokens, round {round_number + 1} of {rounds}: {names}")
            timelines = decode_in_turns(bench_model, engine_backends, prompt, new_tokens) if engine_backends else {}
            for backend in backends:
                if backend.is_slow and not 0 <= round_number < SLOW_ROUNDS:
                    continue
                if backend.name not in timelines:
                    progress(f"{length} tokens, round {round_number + 1} of {rounds}: {backend.name}")
                    timelines[backend.name] = backend.decode(bench_model, prompt, measured[backend.name].new_tokens)
                timeline = timelines[backend.name]
                ids[backend.name] = timeline.ids
                if round_number >= 0:
                    measured[backend.name].add(timeline)
            _check_equal(ids, bench_model.loaded.info.dtype)
        yield list(measured.values())


def _check_equal(ids: dict[str, list[int]], dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        return  # rounding may decide between tokens that are almost equally likely
    longest = max(ids.values(), key=len)
    for name, decoded in ids.items():
        if decoded != longest[: len(decoded)]:
            raise RuntimeError(f"{name} decoded other tokens than the other backends, so that costs cannot be compared")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
