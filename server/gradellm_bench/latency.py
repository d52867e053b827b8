"""One request at a time: every way of decoding on the same prompts."""

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
    """One way at one prompt length: milliseconds, an entry a round.

    Attributes:
        way: its name.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens decoded in a round.
        first_token: to the first token.
        per_token: a token, its scores included.
        to_vector: from a token to its scores, the median of the round; empty without attribution.
        floor: a token where weights, keys and values are read as often as must be, at the measured bandwidth; None for
            ways whose work grows with the prompt.
    """

    way: str
    prompt_tokens: int
    new_tokens: int
    first_token: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    to_vector: list[float] = field(default_factory=list)
    floor: float | None = None

    def over(self, other: Latency) -> float:
        """What a token costs in the other's, the median over the rounds: what slows the machine slows both."""
        rounds = zip(self.per_token, other.per_token, strict=False)  # slow ways have fewer rounds
        return statistics.median(ours / theirs for ours, theirs in rounds)

    def add(self, timeline: Timeline) -> None:
        """Note a round."""
        self.first_token.append(1e3 * timeline.first_token)
        self.per_token.append(1e3 * timeline.per_token)
        if (seconds := timeline.to_vector) is not None:
            self.to_vector.append(1e3 * seconds)


def latencies(
    bench_model: BenchModel,
    ways: Sequence[Backend],
    *,
    prompt_lengths: Sequence[int],
    new_tokens: int,
    rounds: int,
    bandwidth: float,
    progress: Progress,
) -> Iterator[list[Latency]]:
    """All ways at each prompt length; they take turns, so that a busy moment meets them alike.

    This engine's take turns every few tokens, the others in every round.

    Raises:
        RuntimeError: where they decode different tokens in float32 or better: there is nothing to compare then.
    """
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    for length in prompt_lengths:
        measured = {
            way.name: Latency(
                way.name,
                length,
                SLOW_TOKENS if way.is_slow else new_tokens,
                floor=_milliseconds(way.floor(bench_model, length + new_tokens // 2, 1, bandwidth)),
            )
            for way in ways
        }
        for round_number in range(-1, rounds):  # the first only warms up
            prompt = bench_model.prompt(rng, length)
            ids: dict[str, list[int]] = {}
            ours = [way for way in ways if way.kind is not None]
            if ours:
                progress(
                    f"{length} tokens, round {round_number + 1} of {rounds}: {', '.join(way.name for way in ours)}"
                )
            timelines = decode_in_turns(bench_model, ours, prompt, new_tokens) if ours else {}
            for way in ways:
                if way.is_slow and not 0 <= round_number < SLOW_ROUNDS:
                    continue
                if way.name not in timelines:
                    progress(f"{length} tokens, round {round_number + 1} of {rounds}: {way.name}")
                    timelines[way.name] = way.decode(bench_model, prompt, measured[way.name].new_tokens)
                timeline = timelines[way.name]
                ids[way.name] = timeline.ids
                if round_number >= 0:
                    measured[way.name].add(timeline)
            _check_alike(ids, bench_model.loaded.info.dtype)
        yield list(measured.values())


def _check_alike(ids: dict[str, list[int]], dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        return  # rounding decides between tokens that are nearly as likely
    longest = max(ids.values(), key=len)
    for name, its in ids.items():
        if its != longest[: len(its)]:
            raise RuntimeError(f"{name} decoded other tokens than the rest: there is nothing to compare")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
