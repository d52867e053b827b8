"""Saving by a shared forward pass: `python -m gradellm_bench.shared_forward [--shape 125m]`.

Saliency of 32 tokens after a prompt of 256: this engine's (one forward pass, 32 gradients, and the passes that replay
the tokens) against 32 separate forward and backward passes of Transformers' model over each prefix, with frozen
parameters. Both alternate in one run; the median ratio is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from random import Random

import torch

from gradellm_bench.models import SHAPES, BenchModel, random_bench_model
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.params import AttributionSettings
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

PROMPT_TOKENS, NEW_TOKENS = 256, 32


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the saving by a shared forward pass.")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="125m", help="shape of a random Llama (default: 125m)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args()
    use_threads(options.threads)
    bench_model = random_bench_model(options.shape, dtype=torch.float32, device=torch.device("cpu"))
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    prompt, completion = bench_model.prompt(rng, PROMPT_TOKENS), bench_model.prompt(rng, NEW_TOKENS)
    shared, separate = [], []
    for _ in range(options.rounds):
        shared.append(_seconds(lambda: _shared(bench_model, prompt, completion)))
        separate.append(_seconds(lambda: _separate(bench_model, prompt, completion)))
        print(f"shared {shared[-1]:.1f} s, separate {separate[-1]:.1f} s", flush=True)
    ratio = statistics.median(together / apart for together, apart in zip(shared, separate, strict=True))
    print(f"saliency of {NEW_TOKENS} tokens after {PROMPT_TOKENS}: {ratio:.2f} of separate passes (median)")


def _shared(bench_model: BenchModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> None:
    engine = bench_model.engine(max_running=1, num_tokens=PROMPT_TOKENS + NEW_TOKENS)
    list(engine.attribute(PromptInput(prompt_ids=prompt), list(completion), AttributionSettings(method=Saliency())))


def _separate(bench_model: BenchModel, prompt: tuple[int, ...], completion: tuple[int, ...]) -> None:
    model = bench_model.reference
    for step, token_id in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:step]]])
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits
        torch.autograd.grad(logits[0, -1, token_id], x)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_and_exit(main)
