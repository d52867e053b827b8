"""Evaluations against the plain reference: every metric, family and method."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from gradellm_engine import (
    AttributionSettings,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    Finished,
    GradEllm,
    Message,
    Metric,
    Perturb,
    Progress,
    PromptInput,
    Removal,
    Sampling,
    Segment,
    Sources,
    Started,
)
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.core import post_hoc_runner
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.families import FAMILIES
from gradellm_engine.model.runner import ModelRunner
from support.faithfulness.evaluations import (
    CHAT,
    COARSE,
    PERTURBING,
    PI_SOFT,
    RAW,
    TOLERANCE,
    check_summary,
    compare,
    largest_difference,
    methods,
    own_scores,
    run_evaluation,
)
from support.faithfulness.reference import Reference, Rows
from support.methods.reference_case import quick, scores_of
from support.oracle import relative_error
from support.scheduler_harness import scheduler_of

Engines = Callable[..., Engine]


@dataclass(frozen=True)
class Case:
    """One evaluation.

    Attributes:
        model: its name.
        prompt: the input.
        settings: of the evaluation, without labels.
        completion: token ids; None where the model generates it.
        labels: the possible answers; empty for whole completions.
        own: whether scores of the caller's own are evaluated too.
    """

    model: str
    prompt: PromptInput
    settings: EvaluationSettings
    completion: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    own: bool = True


CASES = {
    # All metrics over the whole grid of pis, at two steps.
    "llama": Case(
        "llama",
        PromptInput(prompt=RAW, segments=(Segment("reason", 2, 9),)),
        EvaluationSettings(
            methods(GradEllm(), Random(seed=5)), tuple(Metric), samples=2, seed=7, rationale=("reason",)
        ),
        completion=(70, 71, 72, 73, 74, 75, 76),
    ),
    # An attention window shorter than the shared prefix; in-pass, post-hoc and random methods.
    "mistral": Case(
        "mistral",
        CHAT,
        EvaluationSettings(
            methods(GradEllm.preset("knockout"), Saliency(), Random()),
            tuple(Metric),
            pis=COARSE,
            stride=2,
            offset=1,
            seed=2**63 - 1,
            removal=Removal.ZERO,
            rationale=("who",),
        ),
        completion=(70, 71, 72, 73),
    ),
    "mistral, whole prompt": Case(
        "mistral",
        CHAT,
        EvaluationSettings(methods(Occlusion()), PERTURBING, COARSE, 1, perturb=Perturb.PROMPT, raw_scores=True),
        completion=(70,),
    ),
    # Soft caps and windows; generated tokens and the first token are perturbed too.
    "gemma2": Case(
        "gemma2",
        PromptInput(prompt=RAW),
        EvaluationSettings(
            methods(GradEllm.preset("unloosened"), Attention()),
            PERTURBING,
            COARSE,
            2,
            3,
            1,
            perturb=Perturb.PREFIX,
        ),
        completion=(70, 71, 72, 73, 74),
    ),
    "gemma2, positions": Case(
        "gemma2",
        CHAT,
        EvaluationSettings(methods(GradEllm()), PERTURBING, COARSE, 2, positions=(40, 25, 3, 31, 32)),
        completion=(70, 71),
    ),
    "gpt2": Case(
        "gpt2",
        PromptInput(prompt=RAW),
        EvaluationSettings(methods(GradEllm(), Random()), PERTURBING, COARSE, 2, stride=3),
        own=False,
    ),
    # Sinks, windows and experts.
    "gpt_oss": Case(
        "gpt_oss",
        CHAT,
        EvaluationSettings(methods(GradEllm()), PERTURBING, COARSE, 2, stride=2),
        completion=(70, 71, 72),
    ),
    "demo, labels": Case(
        "demo",
        PromptInput(
            messages=(
                Message("system", "Say whether it is good."),
                Message("user", "Tom was sad. The dog was gone."),
            ),
            segments=(Segment("mood", 0, 12, 1),),
        ),
        EvaluationSettings(
            methods(GradEllm.preset("knockout"), IntegratedGradients(steps=4), Random()),
            tuple(Metric),
            COARSE,
            2,
            removal=Removal.PAD,
            rationale=("mood",),
        ),
        labels=("Positive", "Negative"),
    ),
    "demo": Case(
        "demo",
        PromptInput(messages=(Message("user", "Clara sang because she had got a card. Why did Clara sing?"),)),
        EvaluationSettings(methods(GradEllm(), Random()), PERTURBING, (0.3, 0.7), 1, stride=3, removal=Removal.ZERO),
        own=False,
    ),
    "stories260K": Case(
        "stories260K",
        PromptInput(prompt="Once upon a time, a red fox did not like rain."),
        EvaluationSettings(methods(GradEllm(), Random()), PERTURBING, (0.3, 0.7), 1, stride=4),
        completion=(400, 410, 420, 430, 440),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_equals_the_reference(
    load: Engines, reference: Callable[[str], Reference], explained: dict[tuple[str, int], Tensor], name: str
) -> None:
    case = CASES[name]
    engine, plain = load(case.model), reference(case.model)
    prompt = engine.tokenize(case.prompt)
    m = len(prompt.tokens)
    settings = replace(case.settings, labels=case.labels)
    if case.own:
        rows = own_scores(3, *(m + step for step in range(len(case.completion or (0,)))))
        settings = replace(settings, methods=(EvaluatedMethod("own", rows=rows), *settings.methods))
    sampling = Sampling(max_new_tokens=8, temperature=0.9, seed=4)
    found = run_evaluation(engine, engine.evaluation_request(case.prompt, settings, case.completion, sampling))
    completion = found.output.ids
    assert case.completion is None or tuple(completion) == case.completion

    tokenizer = engine.model.tokenizer
    label_ids = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in case.labels]
    scores: Rows = {}
    for evaluated in settings.methods:
        for step in [0] if case.labels else range(settings.offset, len(completion), settings.stride):
            scores[evaluated.name, step] = (
                evaluated.rows[step]
                if evaluated.method is None
                else explained[str(evaluated.method.resolved(engine.info.num_layers)), step].tolist()
            )
    expected = plain.evaluate(prompt, completion, settings, scores, label_ids, tokenizer.pad_token_id or 0)
    difference, num_unsure = compare(found.items, expected)
    check_summary(found.summary, expected, settings)
    print(
        f"{name}: {len(found.items)} items, {found.summary.num_sequences} sequences of {plain.num_passes}, "
        f"largest difference {difference:.2g}, {num_unsure} flips within rounding"
    )
    assert difference <= TOLERANCE
    assert num_unsure <= 2
    assert found.summary.num_sequences <= found.summary.num_requested


FAMILY_SETTINGS = EvaluationSettings(
    (EvaluatedMethod("own"),), (*PI_SOFT, Metric.DELETION, Metric.INSERTION), (0.2, 0.6), 2
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_predicts_as_transformers_does(
    load: Engines, reference: Callable[[str], Reference], family: str
) -> None:
    engine, prompt_input = load(family), PromptInput(prompt=RAW[:14])
    prompt = engine.tokenize(prompt_input)
    settings = replace(FAMILY_SETTINGS, methods=(EvaluatedMethod("own", rows=own_scores(1, 15)),))
    found = run_evaluation(engine, engine.evaluation_request(prompt_input, settings, [70]))
    expected = reference(family).evaluate(prompt, [70], settings, {("own", 0): settings.methods[0].rows[0]})
    difference, num_unsure = compare(found.items, expected)
    print(f"{family}: largest difference {difference:.2g}, {num_unsure} flips within rounding")
    assert difference <= TOLERANCE
    assert num_unsure <= 1


@pytest.mark.parametrize("model", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_text_a_pass_down_to_a_single_token(
    load: Engines, reference: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch, model: str, dtype: str
) -> None:
    """After a prefix longer than the attention window, where a single token takes its own code path."""
    engine = load(model, dtype)
    monkeypatch.setattr(post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": 1})
    shapes, last_logits = [], ModelRunner.last_logits

    def noting(self: ModelRunner, embeddings: Tensor, *args: Any) -> Tensor:
        shapes.append(tuple(embeddings.shape[:2]))
        return last_logits(self, embeddings, *args)

    monkeypatch.setattr(ModelRunner, "last_logits", noting)
    prompt_input = PromptInput(prompt_ids=(*range(60, 80), 256, 81, 82, 83))
    row = own_scores(1, 24)
    # The last positions of the prompt: when they are removed, one token follows the shared prefix.
    settings = EvaluationSettings(
        (EvaluatedMethod("own", rows=row),),
        (Metric.DELETION, Metric.INSERTION, Metric.SOFT_NC),
        samples=2,
        positions=(21, 22, 23),
    )
    found = run_evaluation(engine, engine.evaluation_request(prompt_input, settings, [70]))
    expected = reference(model).evaluate(engine.tokenize(prompt_input), [70], settings, {("own", 0): row[0]})
    assert {count for count, _ in shapes} == {1}
    assert {length for _, length in shapes} == {1, 2, 3, 4}
    if dtype == "float32":
        assert compare(found.items, expected)[0] <= TOLERANCE
    else:
        soft, plain = found.items[2].points[0].samples, expected.measured[0, "own", Metric.SOFT_NC].samples[0]
        assert soft == pytest.approx(plain, abs=0.1)
        for item in found.items[:2]:
            measured = expected.measured[0, "own", item.metric]
            flips = zip(item.flips, measured.flips, measured.margins, strict=True)
            assert all(a == b for a, b, margin in flips if margin > 0.02)


@pytest.mark.parametrize("chooses", [True, False])
def test_models_with_and_without_logits_to_keep(load: Engines, monkeypatch: pytest.MonkeyPatch, chooses: bool) -> None:
    """The LM head reads the last row of each text in both."""
    engine = load("gemma2")
    runner, widths = engine.model.runner, []
    hook = runner.lm_head.register_forward_hook(lambda module, args, output: widths.append(tuple(args[0].shape[:2])))
    settings = replace(
        FAMILY_SETTINGS, methods=(EvaluatedMethod("own", rows=own_scores(1, 10)),), removal=Removal.REMOVE
    )
    expected = run_evaluation(engine, engine.evaluation_request(RAW[:9], settings, [70]))
    monkeypatch.setattr(runner, "_takes_logits_to_keep", chooses)
    widths.clear()
    found = run_evaluation(engine, engine.evaluation_request(RAW[:9], settings, [70]))
    hook.remove()
    assert largest_difference(found, expected) <= (0 if chooses else 1e-6)
    assert {length for _, length in widths[1:]} == {1}  # the first is the completion's decode step
    assert max(count for count, _ in widths) > 20


@pytest.mark.parametrize("model", ["mistral", "gemma2"])
def test_bfloat16_is_near_the_reference(load: Engines, reference: Callable[[str], Reference], model: str) -> None:
    engine = load(model, "bfloat16")
    prompt = engine.tokenize(CHAT)
    row = own_scores(1, len(prompt.tokens))
    settings = EvaluationSettings((EvaluatedMethod("own", rows=row),), PI_SOFT, COARSE, 4)
    found = run_evaluation(engine, engine.evaluation_request(CHAT, settings, [70]))
    expected = reference(model).evaluate(prompt, [70], settings, {("own", 0): row[0]})
    differences = [
        abs(a - b)
        for item in found.items
        for point, samples in zip(item.points, expected.measured[0, "own", item.metric].samples, strict=True)
        for a, b in zip(point.samples, samples, strict=True)
    ]
    print(
        f"{model}: bfloat16 differs by {statistics.mean(differences):.2g} in the mean, at most {max(differences):.2g}"
    )
    assert statistics.mean(differences) <= 0.03
    assert max(differences) <= 0.1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("labels", [(), ("yes", "no")], ids=["", "labels"])
def test_methods_score_as_in_an_attribution_request(
    load: Engines, explained: dict[tuple[str, int], Tensor], name: str, labels: tuple[str, ...]
) -> None:
    """At some steps of a completion; with labels, the logit of the most probable one."""
    engine, completion = load("mistral"), [70, 71, 72, 73, 74, 75]
    switches = quick(name, samples=8, steps=4)
    settings = EvaluationSettings(
        (EvaluatedMethod("it", switches),), (Metric.TOKEN_F1,), stride=2, offset=1, rationale=("who",), labels=labels
    )
    found = run_evaluation(engine, engine.evaluation_request(CHAT, settings, None if labels else completion))
    if labels:
        assert found.summary.label is not None
        completion = engine.model.tokenizer(labels[found.summary.label], add_special_tokens=False)["input_ids"][:1]
    attribution = AttributionSettings(switches, sources=Sources.PREFIX)
    rows = [scores_of(step) for step in engine.attribute(CHAT, completion, attribution)]
    steps = [0] if labels else [1, 3, 5]
    assert found.summary.steps == tuple(steps)
    for step in steps:
        expected_row = explained[str(switches.resolved(engine.info.num_layers)), step]
        assert relative_error(expected_row, rows[step].double()) <= 1e-5


def test_evaluate_yields_items_and_a_summary(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    monkeypatch.setattr(post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": 60})  # smaller than the texts of a step
    scheduler_of(engine, max_running=1, num_tokens=200)
    settings = EvaluationSettings(methods(GradEllm(), Random()), PI_SOFT, COARSE, stride=2)
    results = list(engine.evaluate(RAW, settings, [70, 71, 72]))
    assert isinstance(results[-1], EvaluationSummary)
    kinds = [(item.step, item.name, item.metric) for item in results[:-1] if isinstance(item, EvaluationItem)]
    assert kinds == [
        (step, name, metric) for step in (0, 2) for name in ("grad_ellm 0", "random") for metric in PI_SOFT
    ]
    pool = engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    left = engine.evaluate(RAW, settings, [70, 71, 72])
    next(left)
    assert pool.num_free_tokens < pool.num_tokens
    del left
    assert pool.num_free_tokens == pool.num_tokens
    assert not engine.scheduler.running


def test_progress_rises_and_started_has_resolved_settings(load: Engines) -> None:
    engine = load("llama")
    settings = EvaluationSettings(methods(GradEllm(), Saliency()), PERTURBING, COARSE, stride=1)
    found = run_evaluation(engine, engine.evaluation_request(RAW, settings, [70, 71, 72]))
    done = [event.done for event in found.output.events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= 1
    started = found.output.events[0]
    assert isinstance(started, Started)
    assert started.evaluation is not None
    assert started.evaluation.methods[0].method == GradEllm(layers=(0, 1, 2))
    assert isinstance(found.output.events[-1], Finished)
    assert isinstance(found.output.events[-2], EvaluationSummary)
