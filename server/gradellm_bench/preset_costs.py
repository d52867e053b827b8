"""Cost of a token by preset, relative to `paper`: `python -m gradellm_bench.preset_costs --model PATH`.

In each round one request is decoded by each preset, one right after the other, in turn, so that all meet the same load
of the machine. The result is the median over the rounds of a preset's seconds per token, divided by those of `paper` in
the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradellm_bench.capacity.document import put
from gradellm_bench.capacity.report import markdown
from gradellm_engine import AttributionSettings, Delivery, Engine, GradEllm, Sampling
from gradellm_engine.params import PRESETS
from gradellm_engine.presets import RECOMMENDED

PROMPT = "Once upon a time there was a little girl who "
REFERENCE = "paper"
Seconds = dict[str, float]  # per token, by preset


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the presets; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gradellm_bench.preset_costs", description=__doc__)
    parser.add_argument("--model", required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", metavar="D", help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="about; default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=48, metavar="N", help="of a request; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="default: %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between its markers, too")
    options = parser.parse_args(arguments)
    engine = Engine.load(options.model, dtype=options.dtype, max_running=1)
    prompt = PROMPT * max(1, options.prompt_tokens // len(engine.tokenize(PROMPT).tokens))
    columns = {
        delivery.value: costs(
            lambda name, delivery=delivery: seconds_per_token(engine, prompt, options.new_tokens, name, delivery),  # type: ignore[misc]
            options.rounds,
        )
        for delivery in Delivery
    }
    text = table(columns)
    print(text)
    if options.page is not None:
        options.page.write_text(put(options.page.read_text(), "preset costs", text))
    return 0


def seconds_per_token(engine: Engine, prompt: str, count: int, preset: str, delivery: Delivery) -> float:
    """Decode one request; seconds for each token after the first."""
    settings = AttributionSettings(GradEllm.preset(engine.concrete_preset(preset)), delivery=delivery)
    steps = iter(engine.generate(prompt, Sampling(max_new_tokens=count), settings))
    next(steps)  # prefill
    began, tokens = time.perf_counter(), sum(1 for _ in steps)
    return (time.perf_counter() - began) / max(1, tokens)


def costs(measure: Callable[[str], float], rounds: int) -> Seconds:
    """Each preset's cost relative to the reference's, the median over the rounds, after one to warm up."""
    names = [name for name in PRESETS if name != RECOMMENDED]  # which is one of the others
    for name in names:
        measure(name)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        found = {name: measure(name) for name in order}
        for name, seconds in found.items():
            ratios[name].append(seconds / found[REFERENCE])
    return {name: statistics.median(values) for name, values in ratios.items()}


def table(columns: Mapping[str, Seconds]) -> str:
    """A row for each preset, a column for each delivery."""
    names = next(iter(columns.values()))
    header = ["preset", *columns]
    return markdown(header, [[name, *(f"{costs[name]:.3f}" for costs in columns.values())] for name in names])


if __name__ == "__main__":
    sys.exit(main())
