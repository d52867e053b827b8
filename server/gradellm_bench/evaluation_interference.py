"""What an evaluation costs, and what it costs other requests.

    python -m gradellm_bench.evaluation_interference [--model PATH]

- One explanation's full evaluation (pi-Soft-NS and NC, 19 values of pi, 3 masks each) as this engine runs it, against
  Transformers' own model with one forward pass a changed text, and against bare forward passes of that model in
  batches: the same texts, whole, the last position's logits alone, and nothing done with what comes. In turns, in one
  run; medians of ratios. The prompt is a conversation where the model has a chat template.
- Gaps between the tokens of explained streams with an evaluation running beside them, and without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradellm_engine.core.outputs import Step
from gradellm_engine.core.post_hoc_runner import MAX_EVALUATION_PASS_TOKENS
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.sentiment import SYSTEM_PROMPT
from gradellm_engine.engine import Engine
from gradellm_engine.faithfulness.keep_probabilities import retentions
from gradellm_engine.faithfulness.masks import kept, uniforms
from gradellm_engine.faithfulness.results import EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings
from gradellm_engine.params import AttributionSettings, GradEllm, Sampling
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.prompts import PromptInput, Role
from gradellm_engine.utils.quiet import run_and_leave
from gradellm_engine.utils.threads import use_threads

NEW_TOKENS = 96  # of an interactive stream
STREAMS = 20
UNDER_WAY = 20_000  # tokens that an evaluation has read when streams begin


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure what an evaluation costs.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--prompt-tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args()
    use_threads(options.threads)
    engine = Engine.load(str(options.model), dtype="float32", threads=options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).requires_grad_(False).eval()
    given = _prompt(engine, options.prompt_tokens)
    length = len(engine.tokenize(given).tokens)
    print(f"{engine.info.name}, {engine.info.num_parameters:,} parameters, prompt of {length} tokens")
    speed(engine, model, given, options.rounds)
    latency(engine, options.rounds)


def _prompt(engine: Engine, num_tokens: int) -> PromptInput:
    """Reviews for a classifier where the model takes messages, else a story; as long as asked for."""
    text = ""
    for sentence in cycle(_SENTENCES):
        text = f"{text} {sentence}".strip()
        given = PromptInput(prompt=text)
        if engine.info.has_chat_template:
            given = PromptInput(messages=(Message("system", SYSTEM_PROMPT), Message("user", f"Text: {text}")))
        if len(engine.tokenize(given).tokens) >= num_tokens:
            return given
    raise AssertionError("the cycle has no end")


_SENTENCES = (
    "To me the movie was shabby.",
    "My father did not find it shabby at all.",
    "It is about a doctor from a small town.",
    "There was a lovely song at the end.",
    "One day, a little girl went to the park with her dog.",
)
_PAPER = AttributionSettings(GradEllm())


def speed(engine: Engine, model: PreTrainedModel, given: PromptInput, rounds: int) -> None:
    """Print how the ways compare."""
    step = next(iter(engine.generate(given, Sampling(max_new_tokens=1), _PAPER)))
    assert step.attribution is not None  # noqa: S101 (it was asked for)
    scores = step.attribution.scores.double().numpy()
    settings = EvaluationSettings((EvaluatedMethod("given", rows={0: scores.tolist()}),))
    tokens = engine.tokenize(given).tokens
    own = np.array([token.role is Role.USER and not token.special for token in tokens])
    texts = _texts(settings, scores, own)
    ids = [token.id for token in tokens]
    ways: dict[str, Callable[[], object]] = {
        "this engine": lambda: _ours(engine, given, step.id, settings),
        "one forward a text": lambda: _forwards(model, ids, texts, 1),
        "bare batches": lambda: _forwards(
            model, ids, texts, MAX_EVALUATION_PASS_TOKENS["cpu"] // len(ids), logits_to_keep=1
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    ours = seconds["this engine"][1:]  # the first round warms up
    for name, its in seconds.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(its[1:], ours, strict=True))
        print(f"  {name}: {1000 * statistics.median(its[1:]):.0f} ms, {ratio:.2f} of this engine's")
    print(
        f"  {len(texts)} changed texts, {len(set(map(bytes, texts)))} of them different; "
        f"{own.sum()} tokens of {len(ids)} may change"
    )


Mask = NDArray[np.bool_]


def _texts(settings: EvaluationSettings, scores: NDArray[np.float64], own: Mask) -> list[Mask]:
    """Which tokens each text has left, those of the whole and the empty text first. [T], bool"""
    size = int(own.sum())
    retained = retentions(scores[own], settings.pis)
    draws = uniforms(0, 0, settings.pis, settings.samples, size)
    masks = kept(draws, np.stack([each.probs for each in retained])).reshape(-1, size)
    texts = []
    for mask in (np.ones(size, np.bool_), np.zeros(size, np.bool_), *masks, *~masks):
        text = np.ones(len(own), np.bool_)
        text[own] = mask
        texts.append(text)
    return texts


def _ours(engine: Engine, given: PromptInput, token_id: int, settings: EvaluationSettings) -> None:
    results = list(engine.evaluate(given, settings, [token_id]))
    assert isinstance(results[-1], EvaluationSummary)  # noqa: S101 (else there is nothing to time)
    engine.model.runner.pool.forget()  # the next round reads the prompt again


@torch.no_grad()
def _forwards(model: PreTrainedModel, ids: Sequence[int], texts: Sequence[Mask], at_once: int, **kwargs: int) -> None:
    embedded = model.get_input_embeddings()(torch.tensor(ids))
    for start in range(0, len(texts), at_once):
        keep = torch.tensor(np.stack(texts[start : start + at_once]), dtype=embedded.dtype)
        model(inputs_embeds=embedded * keep[:, :, None], use_cache=False, **kwargs).logits[:, -1].softmax(-1)


def latency(engine: Engine, rounds: int) -> None:
    """Print gaps between tokens, with an evaluation and without."""
    given = PromptInput(prompt=f"{' '.join(4 * _SENTENCES[-1:])} Then")
    alone: list[float] = []
    beside: list[float] = []
    read = 0
    settings = EvaluationSettings((EvaluatedMethod("paper", GradEllm()),), samples=50, stride=1)
    for _ in range(rounds):
        alone += _gaps(engine, given)
        evaluation = engine.evaluation_request(given, settings, list(range(5, 37)))
        allowance = evaluation.pass_budget
        assert allowance is not None  # noqa: S101 (it is an evaluation)
        engine.scheduler.submit(evaluation)
        while allowance.used < UNDER_WAY:
            for _ in engine.scheduler.step():
                pass
        before = allowance.used
        beside += _gaps(engine, given)
        read += allowance.used - before
        engine.scheduler.cancel(evaluation)
    for name, figure in (("mean", np.mean), ("99th percentile", lambda gaps: np.percentile(gaps, 99))):
        with_it, without = float(figure(beside)), float(figure(alone))
        print(
            f"  gap between tokens, {name}: {1000 * without:.2f} ms; beside an evaluation {1000 * with_it:.2f} ms, "
            f"{with_it / without:.2f} of it"
        )
    print(
        f"  of {len(beside)} gaps; the evaluation read {read:,} tokens meanwhile, the longest gap took "
        f"{1000 * max(beside):.0f} ms"
    )


def _gaps(engine: Engine, given: PromptInput) -> list[float]:
    """Seconds between the tokens of explained streams, one after the other."""
    gaps = []
    for _ in range(STREAMS):
        stream = engine.generation_request(given, Sampling(max_new_tokens=NEW_TOKENS), _PAPER)
        engine.scheduler.submit(stream)
        times = []
        while not stream.is_closed:
            for _ in engine.scheduler.step():
                times += [time.perf_counter() for event in stream.take_events() if isinstance(event, Step)]
        gaps += np.diff(times).tolist()
    return gaps


if __name__ == "__main__":
    run_and_leave(main)
