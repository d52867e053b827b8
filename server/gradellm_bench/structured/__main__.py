"""Cost of structured output: `python -m gradellm_bench.structured [--model PATH]`.

Generates as many tokens without a constraint and with one, BLOCK steps of each in turns in one process, for one stream
and for 8. Prints the ratios of the median steps, by the clock and by the engine thread's CPU time, which other programs
disturb less; and how long the first use of a schema takes until its request may run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

from gradellm_engine.core.request import Request
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

STREAMS = (1, 8)
BLOCK = 16  # steps; a mask is computed beside the steps of its own kind
PROMPT = PromptInput(prompt="A list of people, with their names, ages and hobbies, as JSON: ")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 15}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}
PEOPLE = StructuredOutput(json_schema=json.dumps({"type": "array", "items": PERSON, "minItems": 1000}))
"""A schema whose answers are longer than any that is measured, so that all streams have as many tokens."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the cost of structured output.")
    parser.add_argument("--model", help="a local folder or a hub id (default: the demo model)")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    engine = Engine.load(options.model, max_running=2 * max(STREAMS))
    began = time.perf_counter()
    engine.prepare_structured_output()
    print(f"tokenizer read in {time.perf_counter() - began:.2f} s, once, before the first request")
    print(f"first use of a schema: {1e3 * first_use(engine):.1f} ms")
    for attribution in (None, AttributionSettings()):
        for num_streams in STREAMS:
            free, constrained = step_times(engine, num_streams, options.new_tokens, options.rounds, attribution)
            mode = "plain" if attribution is None else "explained"
            print(
                f"{num_streams} streams, {mode}: {free.wall / constrained.wall:.2f} of the unconstrained tokens a "
                f"second, {free.cpu / constrained.cpu:.2f} by CPU time; {1e3 * free.wall:.2f} ms a step unconstrained"
            )


def first_use(engine: Engine) -> float:
    """Seconds from a request with a schema that was never used until it may run."""
    began = time.perf_counter()
    engine.generation_request(PROMPT, Sampling(max_new_tokens=1), structured_output=PEOPLE)
    return time.perf_counter() - began


class StepTimes:
    """Times of scheduler steps, in seconds, in which each stream got a token."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []

    def add(self, wall: float, cpu: float) -> None:
        """Add a step."""
        self._times.append((wall, cpu))

    @property
    def wall(self) -> float:
        """The median by the clock."""
        return statistics.median(wall for wall, _ in self._times)

    @property
    def cpu(self) -> float:
        """The median of the engine thread's CPU time."""
        return statistics.median(cpu for _, cpu in self._times)


def step_times(
    engine: Engine, num_streams: int, new_tokens: int, rounds: int, attribution: AttributionSettings | None
) -> tuple[StepTimes, StepTimes]:
    """The times of steps without and with a constraint."""
    free, constrained = StepTimes(), StepTimes()
    for number in range(rounds):
        groups = [
            (_streams(engine, num_streams, new_tokens, attribution, constraint, number), times)
            for constraint, times in ((None, free), (PEOPLE, constrained))
        ]
        while any(not request.is_closed for requests, _ in groups for request in requests):
            for requests, times in groups:
                for step in range(BLOCK):
                    _step(engine, requests, times if number and step else StepTimes())  # the first round warms up
    return free, constrained


def _streams(
    engine: Engine,
    num_streams: int,
    new_tokens: int,
    attribution: AttributionSettings | None,
    constraint: StructuredOutput | None,
    seed: int,
) -> list[Request]:
    """Requests that wait or run."""
    requests = [
        engine.generation_request(
            PROMPT,
            Sampling(max_new_tokens=new_tokens, temperature=0.8, seed=num_streams * seed + stream),
            attribution,
            structured_output=constraint,
        )
        for stream in range(num_streams)
    ]
    for request in requests:
        engine.scheduler.submit(request)
    return requests


def _step(engine: Engine, requests: Sequence[Request], times: StepTimes) -> None:
    """Run a scheduler step of these requests alone; its time counts if each has a new token by it."""
    before = [request.num_tokens for request in requests]
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in engine.scheduler.step(lambda request: request in requests):
        pass
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    for request in requests:
        request.take_events()
        if request.error is not None:
            raise request.error
    if all(request.num_tokens == count + 1 for request, count in zip(requests, before, strict=True)):
        times.add(wall, cpu)


if __name__ == "__main__":
    run_and_exit(main)
