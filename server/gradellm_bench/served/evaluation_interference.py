"""Cost of an evaluation, and its effect on other requests.

    python -m gradellm_bench.served.evaluation_interference [--model PATH]

- One explanation's full evaluation (pi-Soft-NS and pi-Soft-NC, 19 values of pi, 3 masks each): this engine, against
  Transformers' model with one forward pass per perturbed text, and against bare batched forward passes of that model
  (the same texts, logits of the last position only, results unused). They alternate in one run; medians of ratios. The
  prompt is a conversation if the model has a chat template.
- Gaps between tokens of explained streams, without and with a running evaluation.
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
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions
from gradellm_engine.faithfulness.metrics.masks import keep_mask, uniforms
from gradellm_engine.faithfulness.results import EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings
from gradellm_engine.params import AttributionSettings, GradEllm
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.prompt import Role
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

NEW_TOKENS = 96  # tokens of an interactive stream
STREAMS = 20
STARTED_TOKENS = 20_000  # tokens that an evaluation has run when streams are submitted


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the cost of an evaluation and its effect on other requests.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--prompt-tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args()
    use_threads(options.threads)
    engine = Engine.load(str(options.model), dtype="float32", threads=options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).requires_grad_(False).eval()
    prompt = _prompt(engine, options.prompt_tokens)
    length = len(engine.tokenize(prompt).tokens)
    print(f"{engine.info.name}, {engine.info.num_parameters:,} parameters, prompt of {length} tokens")
    compare_cost(engine, model, prompt, options.rounds)
    compare_gaps(engine, options.rounds)


def _prompt(engine: Engine, num_tokens: int) -> PromptInput:
    """A prompt of at least `num_tokens`: a classifier's conversation if the model has a chat template, else a story."""
    text = ""
    for sentence in cycle(_SENTENCES):
        text = f"{text} {sentence}".strip()
        prompt = PromptInput(prompt=text)
        if engine.info.has_chat_template:
            prompt = PromptInput(messages=(Message("system", SYSTEM_PROMPT), Message("user", f"Text: {text}")))
        if len(engine.tokenize(prompt).tokens) >= num_tokens:
            return prompt
    raise AssertionError("the cycle has no end")


_SENTENCES = (
    "To me the movie was shabby.",
    "My father did not find it shabby at all.",
    "It is about a doctor from a small town.",
    "There was a lovely song at the end.",
    "One day, a little girl went to the park with her dog.",
)
_PAPER = AttributionSettings(GradEllm())


def compare_cost(engine: Engine, model: PreTrainedModel, prompt: PromptInput, rounds: int) -> None:
    """Print milliseconds of an evaluation by this engine and by Transformers, and their ratios."""
    step = next(iter(engine.generate(prompt, Sampling(max_new_tokens=1), _PAPER)))
    assert step.attribution is not None  # noqa: S101 (for the type checker)
    scores = step.attribution.scores.double().numpy()
    settings = EvaluationSettings((EvaluatedMethod("given", rows={0: scores.tolist()}),))
    tokens = engine.tokenize(prompt).tokens
    perturbable = np.array([token.role is Role.USER and not token.special for token in tokens])
    texts = _perturbed_texts(settings, scores, perturbable)
    ids = [token.id for token in tokens]
    backends: dict[str, Callable[[], object]] = {
        "this engine": lambda: _evaluate(engine, prompt, step.id, settings),
        "one forward a text": lambda: _forwards(model, ids, texts, 1),
        "bare batches": lambda: _forwards(
            model, ids, texts, MAX_EVALUATION_PASS_TOKENS["cpu"] // len(ids), logits_to_keep=1
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(rounds + 1):
        for name, run in backends.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    baseline = seconds["this engine"][1:]  # the first round warms up
    for name, samples in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(samples[1:], baseline, strict=True))
        print(f"  {name}: {1000 * statistics.median(samples[1:]):.0f} ms, {ratio:.2f} of this engine's")
    print(
        f"  {len(texts)} perturbed texts, {len(set(map(bytes, texts)))} of them distinct; "
        f"{perturbable.sum()} of {len(ids)} tokens are perturbed"
    )


Mask = NDArray[np.bool_]


def _perturbed_texts(settings: EvaluationSettings, scores: NDArray[np.float64], perturbable: Mask) -> list[Mask]:
    """Keep masks of the perturbed texts [T], bool; the unperturbed and the empty text first."""
    size = int(perturbable.sum())
    retained = retentions(scores[perturbable], settings.pis)
    draws = uniforms(0, 0, settings.pis, settings.samples, size)
    masks = keep_mask(draws, np.stack([each.probs for each in retained])).reshape(-1, size)
    texts = []
    for mask in (np.ones(size, np.bool_), np.zeros(size, np.bool_), *masks, *~masks):
        text = np.ones(len(perturbable), np.bool_)
        text[perturbable] = mask
        texts.append(text)
    return texts


def _evaluate(engine: Engine, prompt: PromptInput, token_id: int, settings: EvaluationSettings) -> None:
    results = list(engine.evaluate(prompt, settings, [token_id]))
    assert isinstance(results[-1], EvaluationSummary)  # noqa: S101 (the evaluation was complete)
    engine.model.runner.pool.evict_all()  # so that the next round runs the prefill again


@torch.no_grad()
def _forwards(model: PreTrainedModel, ids: Sequence[int], texts: Sequence[Mask], at_once: int, **kwargs: int) -> None:
    embedded = model.get_input_embeddings()(torch.tensor(ids))
    for start in range(0, len(texts), at_once):
        keep = torch.tensor(np.stack(texts[start : start + at_once]), dtype=embedded.dtype)
        model(inputs_embeds=embedded * keep[:, :, None], use_cache=False, **kwargs).logits[:, -1].softmax(-1)


def compare_gaps(engine: Engine, rounds: int) -> None:
    """Print gaps between tokens, without and with a running evaluation."""
    prompt = PromptInput(prompt=f"{' '.join(4 * _SENTENCES[-1:])} Then")
    alone: list[float] = []
    with_evaluation: list[float] = []
    num_tokens = 0
    settings = EvaluationSettings((EvaluatedMethod("paper", GradEllm()),), samples=50, stride=1)
    for _ in range(rounds):
        alone += _gaps(engine, prompt)
        evaluation = engine.evaluation_request(prompt, settings, list(range(5, 37)))
        pass_budget = evaluation.pass_budget
        assert pass_budget is not None  # noqa: S101 (for the type checker)
        engine.scheduler.submit(evaluation)
        while pass_budget.used < STARTED_TOKENS:
            for _ in engine.scheduler.step():
                pass
        before = pass_budget.used
        with_evaluation += _gaps(engine, prompt)
        num_tokens += pass_budget.used - before
        engine.scheduler.cancel(evaluation)
    for name, figure in (("mean", np.mean), ("99th percentile", lambda gaps: np.percentile(gaps, 99))):
        with_it, without = float(figure(with_evaluation)), float(figure(alone))
        print(
            f"  gap between tokens, {name}: {1000 * without:.2f} ms; with an evaluation {1000 * with_it:.2f} ms, "
            f"{with_it / without:.2f} of it"
        )
    print(
        f"  of {len(with_evaluation)} gaps; the evaluation ran {num_tokens:,} tokens meanwhile, the longest gap took "
        f"{1000 * max(with_evaluation):.0f} ms"
    )


def _gaps(engine: Engine, prompt: PromptInput) -> list[float]:
    """Seconds between tokens of explained streams, which run one after the other."""
    gaps = []
    for _ in range(STREAMS):
        request = engine.generation_request(prompt, Sampling(max_new_tokens=NEW_TOKENS), _PAPER)
        engine.scheduler.submit(request)
        times = []
        while not request.is_closed:
            for _ in engine.scheduler.step():
                times += [time.perf_counter() for event in request.take_events() if isinstance(event, Step)]
        gaps += np.diff(times).tolist()
    return gaps


if __name__ == "__main__":
    run_and_exit(main)
