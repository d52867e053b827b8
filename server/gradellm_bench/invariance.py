"""Cost of batch-invariant execution: `python -m gradellm_bench.invariance [--shape 125m | --demo]`.

Loads the model twice in one process, without and with batch invariance, and alternates between them. Prints medians and
the median ratio of the rounds for: one stream (plain, explained, in chunks), 8 explained streams, and prefill.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import torch

from gradellm_bench.models import SHAPES, random_llama
from gradellm_engine.engine import Engine
from gradellm_engine.model.loader import LoadedModel, load_model, wrap_model
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

NEW_TOKENS = 24
PROMPT_TOKENS = 128
PROMPTS = (512, 1024)  # tokens of prefill cases; as far as the model's context has room
NUM_SLOTS = 8 * (PROMPT_TOKENS + NEW_TOKENS + 16)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the cost of batch-invariant execution.")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="125m", help="shape of a random Llama (default: 125m)"
    )
    parser.add_argument("--demo", action="store_true", help="use the demo model")
    parser.add_argument("--only", default="", help="cases whose names contain this, such as prompt (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args()
    use_threads(options.threads)
    engines = [_engine(options, batch_invariant=batch_invariant) for batch_invariant in (False, True)]
    cases = [case for case in _cases(engines[0].context_tokens) if options.only in case[0]]
    for name, work, num_tokens in cases:
        rounds = []
        for number in range(1 + options.rounds):
            seconds = [_seconds(work, engine, number) / num_tokens for engine in engines]
            rounds += [seconds] if number else []  # the first warms up
        default, invariant = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(with_it / without for without, with_it in rounds)
        print(f"{name}: {default:.2f} ms a token, batch-invariant {invariant:.2f} ms, {ratio:.2f} times", flush=True)


def _engine(options: argparse.Namespace, *, batch_invariant: bool) -> Engine:
    loaded = _loaded(options, batch_invariant=batch_invariant)
    loaded = replace(loaded, end_ids=frozenset())
    num_slots = max(NUM_SLOTS, *PROMPTS) + 64
    return Engine(loaded, max_running=8, kv_bytes=num_slots * loaded.runner.bytes_per_token)


def _loaded(options: argparse.Namespace, *, batch_invariant: bool) -> LoadedModel:
    if options.demo:
        return load_model(batch_invariant=batch_invariant)
    model, tokenizer = random_llama(options.shape, dtype=torch.float32, device=torch.device("cpu"))
    return wrap_model(model.eval(), tokenizer, name=options.shape, batch_invariant=batch_invariant)


def _cases(context_tokens: int) -> list[tuple[str, Callable[[Engine, int], None], int]]:
    explained, chunked = AttributionSettings(), AttributionSettings(delivery=Delivery.CHUNKED)
    cases: list[tuple[str, Callable[[Engine, int], None], int]] = [
        ("one stream, plain", partial(_generate, 1, None), NEW_TOKENS),
        ("one stream, explained", partial(_generate, 1, explained), NEW_TOKENS),
        ("one stream, explained in chunks", partial(_generate, 1, chunked), NEW_TOKENS),
        ("8 streams, explained", partial(_generate, 8, explained), 8 * NEW_TOKENS),
    ]
    return cases + [
        (f"a prompt of {length:,}", partial(_prefill, length), length) for length in PROMPTS if length < context_tokens
    ]


def _prompt(engine: Engine, seed: int, length: int) -> PromptInput:
    return PromptInput(prompt_ids=tuple(Random(seed).choices(range(5, engine.info.vocab_size), k=length)))  # noqa: S311


def _generate(count: int, attribution: AttributionSettings | None, engine: Engine, turn: int) -> None:
    """Decode `count` streams at once. `_seconds` has put their prompts into the prefix cache."""
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    streams = [
        engine.generation_request(_prompt(engine, turn * 8 + i, PROMPT_TOKENS), sampling, attribution)
        for i in range(count)
    ]
    for stream in streams:
        engine.scheduler.submit(stream)
    while engine.scheduler.has_work():
        for _ in engine.scheduler.step():
            pass


def _prefill(length: int, engine: Engine, turn: int) -> None:
    list(engine.generate(_prompt(engine, turn, length), Sampling(max_new_tokens=1)))


def _seconds(work: Callable[[Engine, int], None], engine: Engine, turn: int) -> float:
    """Seconds of a case; of streams without the prefill, whose prompts are put into the prefix cache first."""
    if work.func is _generate:  # type: ignore[attr-defined]
        for i in range(work.args[0]):  # type: ignore[attr-defined]
            list(engine.generate(_prompt(engine, turn * 8 + i, PROMPT_TOKENS), Sampling(max_new_tokens=1)))
    start = time.perf_counter()
    work(engine, turn)
    seconds = time.perf_counter() - start
    engine.model.runner.pool.evict_all()
    return seconds


if __name__ == "__main__":
    run_and_exit(main)
