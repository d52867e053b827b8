"""Cost of structured output: `python -m gradellm_bench.structured [--model PATH]`.

Generates as many tokens without a constraint and with one, a step of each in turns in one process, for one stream and
for 8. Prints the ratio of the median steps, and how long the first use of a schema takes until its request may run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

from gradellm_engine.core.request import Request
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Sampling
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.utils.quiet import run_and_exit

STREAMS = (1, 8)
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
    options = parser.parse_args(arguments)
    engine = Engine.load(options.model, max_running=2 * max(STREAMS))
    began = time.perf_counter()
    engine.prepare_structured_output()
    print(f"tokenizer read in {time.perf_counter() - began:.2f} s, once, before the first request")
    print(f"first use of a schema: {1e3 * first_use(engine):.1f} ms")
    for attribution in (None, AttributionSettings()):
        for num_streams in STREAMS:
            ratio, seconds = cost(engine, num_streams, options.new_tokens, options.rounds, attribution)
            mode = "plain" if attribution is None else "explained"
            print(
                f"{num_streams} streams, {mode}: {ratio:.2f} of the unconstrained tokens a second, "
                f"{1e3 * seconds:.2f} ms a step unconstrained"
            )


def first_use(engine: Engine) -> float:
    """Seconds from a request with a schema that was never used until it may run."""
    began = time.perf_counter()
    engine.generation_request(PROMPT, Sampling(max_new_tokens=1), structured_output=PEOPLE)
    return time.perf_counter() - began


def cost(
    engine: Engine, num_streams: int, new_tokens: int, rounds: int, attribution: AttributionSettings | None
) -> tuple[float, float]:
    """Constrained tokens a second relative to unconstrained ones, and seconds of an unconstrained step.

    Both kinds of streams take turns, a scheduler step each, so that other programs slow them down alike.
    """
    free: list[float] = []
    constrained: list[float] = []
    for number in range(rounds):
        groups = [
            (_streams(engine, num_streams, new_tokens, attribution, constraint, number), seconds)
            for constraint, seconds in ((None, free), (PEOPLE, constrained))
        ]
        while any(not request.is_closed for requests, _ in groups for request in requests):
            for requests, seconds in groups:
                _step(engine, requests, seconds)
    return statistics.median(free) / statistics.median(constrained), statistics.median(free)


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


def _step(engine: Engine, requests: Sequence[Request], seconds: list[float]) -> None:
    """Run a scheduler step of these requests alone; its time counts if each has a new token by it."""
    before = [request.num_tokens for request in requests]
    began = time.perf_counter()
    for _ in engine.scheduler.step(lambda request: request in requests):
        pass
    elapsed = time.perf_counter() - began
    for request in requests:
        request.take_events()
        if request.error is not None:
            raise request.error
    if all(request.num_tokens == count + 1 for request, count in zip(requests, before, strict=True)):
        seconds.append(elapsed)


if __name__ == "__main__":
    run_and_exit(main)
