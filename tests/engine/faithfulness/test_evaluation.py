"""A whole evaluation against the plain one, its invariants, and what it refuses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine import (
    AttributionSettings,
    ComputationError,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    Finished,
    GradEllm,
    InvalidRequestError,
    Message,
    Metric,
    Perturb,
    Progress,
    PromptInput,
    Removal,
    Request,
    Sampling,
    Segment,
    Sources,
    Started,
)
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.core import post_hoc_runner
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.faithfulness import evaluation, perturbation_runner
from gradellm_engine.faithfulness.curves import PIS
from gradellm_engine.methods import selected_steps
from gradellm_engine.methods.cost_model import ModelCost
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.families import FAMILIES
from gradellm_engine.model.runner import ModelRunner
from support.faithfulness_reference import Evaluated, Reference, Rows
from support.oracle import relative_error
from support.reference_case import quick, scores_of
from support.scheduler_harness import RequestOutput, run, run_alone, scheduler_of
from support.tiny_models import save_random_model

ModelPath = Callable[[str], Path]
Engines = Callable[..., Engine]
TOLERANCE = 1e-4
SURE = 1e-5  # by which the most probable answer must lead, for rounding not to choose another one
PLAIN = tuple(metric for metric in Metric if not metric.needs_rationale)
PI_SOFT = (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC)
RAW = "A red fox did not like rain."
CHAT = PromptInput(
    messages=(Message("system", "Be brief. Be kind."), Message("user", "A red fox ran. Who ran?")),
    segments=(Segment("who", 2, 9, 1),),
)


@pytest.fixture(scope="module")
def path_of(model_path: ModelPath, tmp_path_factory: pytest.TempPathFactory) -> ModelPath:
    """Where a model lies; random ones have weights large enough that tokens differ."""

    @cache
    def path(name: str) -> Path:
        if name not in FAMILIES:
            return model_path(name)
        return save_random_model(tmp_path_factory.mktemp(name), name, seed=1, initializer_range=0.15)

    return path


@pytest.fixture(scope="module")
def load(path_of: ModelPath) -> Engines:
    """A model by name and dtype, loaded once."""
    return cache(lambda name, dtype="float32": Engine.load(str(path_of(name)), dtype=dtype, threads=1))


@pytest.fixture(scope="module")
def reference(path_of: ModelPath) -> Callable[[str], Reference]:
    return cache(lambda name: Reference(path_of(name)))


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Tensor]:
    """The scores that methods told an evaluation, by their switches and step."""
    told: dict[tuple[str, int], Tensor] = {}
    scores_at = selected_steps.scores_at

    def noting(model: Any, method: Any, switches: Any, *args: Any) -> Iterator[Any]:
        for result in scores_at(model, method, switches, *args):
            if isinstance(result, tuple):
                told[str(switches), result[0]] = result[1]
            yield result

    monkeypatch.setattr(post_hoc_runner, "scores_at", noting)
    return told


@dataclass
class Outcome:
    """What an evaluation told."""

    told: RequestOutput

    @property
    def items(self) -> list[EvaluationItem]:
        return [event for event in self.told.events if isinstance(event, EvaluationItem)]

    @property
    def summary(self) -> EvaluationSummary:
        (summary,) = (event for event in self.told.events if isinstance(event, EvaluationSummary))
        return summary

    def samples(self, name: str, metric: Metric, step: int | None = None) -> np.ndarray[Any, Any]:
        """Of one attribution and soft metric. [steps, P, N]"""
        return np.array(
            [
                [point.samples for point in item.points]
                for item in self.items
                if (item.name, item.metric) == (name, metric) and step in (None, item.step)
            ]
        )


def outcome(engine: Engine, stream: Request) -> Outcome:
    """Of an evaluation that has the engine for itself."""
    told = run_alone(engine, stream)
    if told.error is not None:
        raise told.error
    return Outcome(told)


def own_scores(seed: int, *lengths: int) -> dict[int, Sequence[float]]:
    """A caller's scores by step, of so many tokens each: of both signs, some of them equal."""
    rng = np.random.default_rng(seed)
    return {step: np.round(rng.normal(size=length), 1).tolist() for step, length in enumerate(lengths)}


# Against the plain one -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One evaluation.

    Attributes:
        model: whose.
        given: the prompt.
        settings: beside labels.
        completion: token ids; None for what the model generates.
        labels: for an answer that is one of some.
        own: whether a caller's scores are among the judged.
    """

    model: str
    given: PromptInput
    settings: EvaluationSettings
    completion: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    own: bool = True


def methods(*switches: Any) -> tuple[EvaluatedMethod, ...]:
    return tuple(
        EvaluatedMethod(f"{its.name} {index}" if its.name != "random" else "random", its)
        for index, its in enumerate(switches)
    )


COARSE = (0.1, 0.35, 0.9)
CASES = {
    # Everything at once, over the whole grid, at two steps.
    "llama": Case(
        "llama",
        PromptInput(prompt=RAW, segments=(Segment("reason", 2, 9),)),
        EvaluationSettings(
            methods(GradEllm(), Random(seed=5)), tuple(Metric), samples=2, seed=7, rationale=("reason",)
        ),
        completion=(70, 71, 72, 73, 74, 75, 76),
    ),
    # A window that is shorter than what stands before the user's text, and methods of all three kinds.
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
        EvaluationSettings(methods(Occlusion()), PLAIN, COARSE, 1, perturb=Perturb.PROMPT, raw_scores=True),
        completion=(70,),
    ),
    # Soft caps and windows; what was generated is perturbed, too, and so is the first token.
    "gemma2": Case(
        "gemma2",
        PromptInput(prompt=RAW),
        EvaluationSettings(
            methods(GradEllm.preset("unloosened"), Attention()), PLAIN, COARSE, 2, 3, 1, perturb=Perturb.PREFIX
        ),
        completion=(70, 71, 72, 73, 74),
    ),
    "gemma2, positions": Case(
        "gemma2",
        CHAT,
        EvaluationSettings(methods(GradEllm()), PLAIN, COARSE, 2, positions=(40, 25, 3, 31, 32)),
        completion=(70, 71),
    ),
    "gpt2": Case(
        "gpt2",
        PromptInput(prompt=RAW),
        EvaluationSettings(methods(GradEllm(), Random()), PLAIN, COARSE, 2, stride=3),
        own=False,
    ),
    # Sinks, windows and experts.
    "gpt_oss": Case(
        "gpt_oss", CHAT, EvaluationSettings(methods(GradEllm()), PLAIN, COARSE, 2, stride=2), completion=(70, 71, 72)
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
        EvaluationSettings(methods(GradEllm(), Random()), PLAIN, (0.3, 0.7), 1, stride=3, removal=Removal.ZERO),
        own=False,
    ),
    "stories260K": Case(
        "stories260K",
        PromptInput(prompt="Once upon a time, a red fox did not like rain."),
        EvaluationSettings(methods(GradEllm(), Random()), PLAIN, (0.3, 0.7), 1, stride=4),
        completion=(400, 410, 420, 430, 440),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_plain_one_finds(
    load: Engines, reference: Callable[[str], Reference], explained: dict[tuple[str, int], Tensor], name: str
) -> None:
    case = CASES[name]
    engine, plain = load(case.model), reference(case.model)
    prompt = engine.tokenize(case.given)
    m = len(prompt.tokens)
    asked = replace(case.settings, labels=case.labels)
    if case.own:
        rows = own_scores(3, *(m + step for step in range(len(case.completion or (0,)))))
        asked = replace(asked, judged=(EvaluatedMethod("own", rows=rows), *asked.judged))
    sampling = Sampling(max_new_tokens=8, temperature=0.9, seed=4)
    found = outcome(engine, engine.evaluation_request(case.given, asked, case.completion, sampling))
    completion = found.told.ids
    assert case.completion is None or tuple(completion) == case.completion

    tokenizer = engine.model.tokenizer
    label_ids = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in case.labels]
    scores: Rows = {}
    for judged in asked.judged:
        for step in [0] if case.labels else range(asked.offset, len(completion), asked.stride):
            scores[judged.name, step] = (
                judged.rows[step]
                if judged.method is None
                else explained[str(judged.method.resolved(engine.info.num_layers)), step].tolist()
            )
    expected = plain.evaluate(prompt, completion, asked, scores, label_ids, tokenizer.pad_token_id or 0)
    difference, unsure = compare(found.items, expected)
    check_summary(found.summary, expected, asked)
    print(
        f"{name}: {len(found.items)} items, {found.summary.num_sequences} sequences of {plain.num_passes}, "
        f"largest difference {difference:.2g}, {unsure} flips by a hair"
    )
    assert difference <= TOLERANCE
    assert unsure <= 2
    assert found.summary.num_sequences <= found.summary.num_asked


def compare(items: Sequence[EvaluationItem], expected: Evaluated) -> tuple[float, int]:
    """The largest difference of any number, and how many flips were too near to call."""
    assert [(item.step, item.name, item.metric) for item in items] == list(expected.measured)
    largest, unsure = 0.0, 0
    for item in items:
        its = expected.measured[item.step, item.name, item.metric]
        differing = [i for i, (a, b) in enumerate(zip(item.flips, its.flips, strict=True)) if a != b]
        assert all(its.margins[i] <= SURE for i in differing), (item, its)
        unsure += len(differing)
        assert item.value == pytest.approx(its.value, abs=TOLERANCE + len(differing) / 20)
        pairs = [] if differing else [(item.value, its.value)]
        assert len(item.points) == len(its.samples)
        for point, samples, achieved, alpha in zip(item.points, its.samples, its.achieved, its.alphas, strict=True):
            pairs += zip(point.samples, samples, strict=True)
            pairs += [(point.mean, sum(samples) / len(samples)), (point.achieved, achieved)]
            assert point.alpha == pytest.approx(alpha, rel=1e-9)
            if point.pi is not None:
                assert point.achieved == pytest.approx(point.pi, abs=1e-9)
        if item.metric in (Metric.SOFT_NS, Metric.SOFT_NC):
            assert item.expected_tokens == pytest.approx(its.achieved[0] * expected.num_perturbable_at[item.step])
        else:
            assert item.expected_tokens is None
        largest = max([largest, *(abs(a - b) for a, b in pairs)])
    return largest, unsure


def check_summary(summary: EvaluationSummary, expected: Evaluated, asked: EvaluationSettings) -> None:
    assert list(summary.steps) == expected.steps
    assert list(summary.skipped) == expected.skipped
    assert (summary.label, summary.is_outside) == (expected.label, expected.is_outside)
    assert summary.num_perturbable == expected.num_perturbable_at[expected.steps[0]]
    texts = 0
    for of in summary.metrics:
        its = expected.of(of.name, of.metric)
        if any(margin <= SURE for one in its for margin in one.margins):
            continue
        values = [one.value for one in its]
        assert of.steps == len(values)
        assert of.interval.mean == pytest.approx(statistics.mean(values), abs=TOLERANCE)
        assert of.median == pytest.approx(statistics.median(values), abs=TOLERANCE)
        if of.metric in PI_SOFT:
            points = [[statistics.mean(samples) for samples in one.samples] for one in its]
            assert of.curve == pytest.approx(
                [statistics.mean(column) for column in zip(*points, strict=True)], abs=TOLERANCE
            )
        else:
            assert of.curve == ()
        has_interval = of.metric.is_soft and asked.samples > 1
        assert (of.interval.low is not None) == (of.interval.high is not None) == has_interval
        if of.interval.low is not None and of.interval.high is not None:
            assert of.interval.low <= of.interval.mean <= of.interval.high
        random = expected.of("random", of.metric)
        assert (of.difference is None) == (not random or of.name == "random")
        if of.difference is not None:
            gain = statistics.mean(values) - statistics.mean(one.value for one in random)
            assert of.difference.mean == pytest.approx(gain, abs=TOLERANCE)
        soft = of.metric in (Metric.SOFT_NS, Metric.SOFT_NC)
        assert (of.expected_tokens is not None) == soft
    counts = {Metric.INSERTION: 20, Metric.DELETION: 20}
    for (_, _, metric), one in expected.measured.items():
        texts += sum(map(len, one.samples)) or counts.get(metric, 0)
    assert summary.num_asked == texts + 2 * len(expected.steps)


FAMILY_SETTINGS = EvaluationSettings(
    (EvaluatedMethod("own"),), (*PI_SOFT, Metric.DELETION, Metric.INSERTION), (0.2, 0.6), 2
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_reads_changed_texts_as_transformers_does(
    load: Engines, reference: Callable[[str], Reference], family: str
) -> None:
    engine, plain, given = load(family), reference(family), PromptInput(prompt=RAW[:14])
    prompt = engine.tokenize(given)
    asked = replace(FAMILY_SETTINGS, judged=(EvaluatedMethod("own", rows=own_scores(1, 15)),))
    found = outcome(engine, engine.evaluation_request(given, asked, [70]))
    expected = plain.evaluate(prompt, [70], asked, {("own", 0): asked.judged[0].rows[0]})
    difference, unsure = compare(found.items, expected)
    print(f"{family}: largest difference {difference:.2g}, {unsure} flips by a hair")
    assert difference <= TOLERANCE
    assert unsure <= 1


@pytest.mark.parametrize("model", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_texts_one_by_one_down_to_a_single_token(
    load: Engines, reference: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch, model: str, dtype: str
) -> None:
    """After a beginning that is longer than the window, where a single token is computed in a way of its own."""
    engine = load(model, dtype)
    monkeypatch.setattr(post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": 1})
    lengths_, last_logits = [], ModelRunner.last_logits

    def noting(self: ModelRunner, embeddings: Tensor, *args: Any) -> Tensor:
        lengths_.append(tuple(embeddings.shape[:2]))
        return last_logits(self, embeddings, *args)

    monkeypatch.setattr(ModelRunner, "last_logits", noting)
    given_ = PromptInput(prompt_ids=(*range(60, 80), 256, 81, 82, 83))
    row = own_scores(1, 24)
    # The last places of the prompt: when they are gone, one token is left behind the common beginning.
    asked = EvaluationSettings(
        (EvaluatedMethod("own", rows=row),),
        (Metric.DELETION, Metric.INSERTION, Metric.SOFT_NC),
        samples=2,
        positions=(21, 22, 23),
    )
    found = outcome(engine, engine.evaluation_request(given_, asked, [70]))
    expected = reference(model).evaluate(engine.tokenize(given_), [70], asked, {("own", 0): row[0]})
    assert {count for count, _ in lengths_} == {1}
    assert {length for _, length in lengths_} == {1, 2, 3, 4}
    if dtype == "float32":
        assert compare(found.items, expected)[0] <= TOLERANCE
    else:
        soft, plain = found.items[2].points[0].samples, expected.measured[0, "own", Metric.SOFT_NC].samples[0]
        assert soft == pytest.approx(plain, abs=0.1)
        for item in found.items[:2]:
            its = expected.measured[0, "own", item.metric]
            assert all(a == b for a, b, margin in zip(item.flips, its.flips, its.margins, strict=True) if margin > 0.02)


@pytest.mark.parametrize("chooses", [True, False])
def test_models_that_choose_no_logits(load: Engines, monkeypatch: pytest.MonkeyPatch, chooses: bool) -> None:
    """The head reads the last row of each text in both."""
    engine = load("gemma2")
    runner, widths = engine.model.runner, []
    hook = runner._head.register_forward_hook(lambda module, args, output: widths.append(tuple(args[0].shape[:2])))
    asked = replace(FAMILY_SETTINGS, judged=(EvaluatedMethod("own", rows=own_scores(1, 10)),), removal=Removal.REMOVE)
    expected = outcome(engine, engine.evaluation_request(RAW[:9], asked, [70]))
    monkeypatch.setattr(runner, "_chooses_logits", chooses)
    widths.clear()
    found = outcome(engine, engine.evaluation_request(RAW[:9], asked, [70]))
    hook.remove()
    assert largest_difference(found, expected) <= (0 if chooses else 1e-6)
    assert {length for _, length in widths[1:]} == {1}  # the first is the completion's own step
    assert max(count for count, _ in widths) > 20


@pytest.mark.parametrize("model", ["mistral", "gemma2"])
def test_in_bfloat16_it_is_nearly_so(load: Engines, reference: Callable[[str], Reference], model: str) -> None:
    engine = load(model, "bfloat16")
    prompt = engine.tokenize(CHAT)
    row = own_scores(1, len(prompt.tokens))
    asked = EvaluationSettings((EvaluatedMethod("own", rows=row),), PI_SOFT, COARSE, 4)
    found = outcome(engine, engine.evaluation_request(CHAT, asked, [70]))
    expected = reference(model).evaluate(prompt, [70], asked, {("own", 0): row[0]})
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
def test_methods_score_as_when_they_are_asked_alone(
    load: Engines, explained: dict[tuple[str, int], Tensor], name: str, labels: tuple[str, ...]
) -> None:
    """At some steps of a completion; with labels, the likeliest one's logit."""
    engine, completion = load("mistral"), [70, 71, 72, 73, 74, 75]
    switches = quick(name, samples=8, steps=4)
    asked = EvaluationSettings(
        (EvaluatedMethod("it", switches),), (Metric.TOKEN_F1,), stride=2, offset=1, rationale=("who",), labels=labels
    )
    found = outcome(engine, engine.evaluation_request(CHAT, asked, None if labels else completion))
    if labels:
        assert found.summary.label is not None
        completion = engine.model.tokenizer(labels[found.summary.label], add_special_tokens=False)["input_ids"][:1]
    settings = AttributionSettings(switches, sources=Sources.PREFIX)
    rows = [scores_of(step) for step in engine.attribute(CHAT, completion, settings)]
    steps = [0] if labels else [1, 3, 5]
    assert found.summary.steps == tuple(steps)
    for step in steps:
        ours = explained[str(switches.resolved(engine.info.num_layers)), step]
        assert relative_error(ours, rows[step].double()) <= 1e-5


# Invariants ----------------------------------------------------------------------------------------------------------

ROUNDING = 1e-5
KINDS = ("random", "half zero", "one hot", "constant")
kinds, seeds = st.sampled_from(KINDS), st.integers(0, 2**32)
lengths = st.sampled_from([1, 2, 9])  # of the text, in tokens
few = examples(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


def drawn(kind: str, seed: int, length: int) -> list[float]:
    """Scores of so many tokens."""
    rng = np.random.default_rng(seed)
    row = rng.random(length)
    match kind:
        case "half zero":
            row[rng.permutation(length)[: length // 2]] = 0
        case "one hot":
            row = np.eye(length)[rng.integers(length)]
        case "constant":
            row[:] = row[0]
    return [float(score) for score in row]


def judged(name: str, kind: str, seed: int, length: int) -> EvaluatedMethod:
    """A caller's scores of a raw prompt of so many tokens, behind its first."""
    return EvaluatedMethod(name, rows={0: [0.0, *drawn(kind, seed, length)]})


def largest_difference(a: Outcome, b: Outcome, names: Sequence[str] = ("own",)) -> float:
    """Of any number that was measured of some attributions."""
    theirs = {(item.step, item.name, item.metric): item for item in b.items if item.name in names}
    ours = [item for item in a.items if item.name in names]
    assert {(item.step, item.name, item.metric) for item in ours} == set(theirs)
    largest = 0.0
    for item in ours:
        other = theirs[item.step, item.name, item.metric]
        assert item.flips == other.flips
        pairs = [(item.value, other.value)]
        for p, q in zip(item.points, other.points, strict=True):
            assert p.pi == q.pi
            assert (p.achieved, p.alpha) == pytest.approx((q.achieved, q.alpha), rel=1e-4)  # scores are rounded, too
            pairs += zip(p.samples, q.samples, strict=True)
        largest = max([largest, *(abs(x - y) for x, y in pairs)])
    return largest


@few
@given(kinds, seeds, lengths)
def test_nothing_kept_is_nothing_and_all_kept_is_all(load: Engines, kind: str, seed: int, length: int) -> None:
    engine = load("llama")
    asked = EvaluationSettings((judged("own", kind, seed, length),), PI_SOFT, (1e-6, 1 - 1e-6), seed=seed)
    found = outcome(engine, engine.evaluation_request(RAW[:length], asked, [70]))
    for metric in PI_SOFT:
        nothing, everything = found.samples("own", metric)[0]
        assert nothing == pytest.approx(np.zeros(3), abs=ROUNDING)
        assert everything == pytest.approx(np.ones(3), abs=ROUNDING)
    # Two texts, each of them once, beside the two that P and P_0 are of.
    assert found.summary.num_sequences == 4
    assert found.summary.num_asked == 2 + 2 * 2 * 3


@few
@given(kinds, seeds, lengths)
def test_single_masks_are_shared_by_all_that_draw_alike(load: Engines, kind: str, seed: int, length: int) -> None:
    """Two methods that agree cost as much as one; with them, NS and NC differ by what is kept alone."""
    engine = load("llama")
    one = EvaluationSettings((judged("own", kind, seed, length),), PI_SOFT, COARSE, seed=seed)
    both = replace(one, judged=(*one.judged, replace(one.judged[0], name="other")))
    alone, together = (outcome(engine, engine.evaluation_request(RAW[:length], its, [70])) for its in (one, both))
    assert together.summary.num_sequences == alone.summary.num_sequences
    assert together.summary.num_asked == 2 * alone.summary.num_asked - 2
    assert alone.summary.num_sequences <= alone.summary.num_asked
    for metric in PI_SOFT:
        assert (together.samples("own", metric) == together.samples("other", metric)).all()
    assert largest_difference(alone, together) <= ROUNDING
    assert (found := together.samples("own", Metric.PI_SOFT_NS)).min() >= 0
    assert found.max() <= 1 + ROUNDING


@few
@given(kinds, seeds, lengths, st.sampled_from([(1, 1), (64, 7), (10**6, 10**6)]))
def test_the_size_of_batches_changes_nothing(
    load: Engines, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int, length: int, sizes: tuple[int, int]
) -> None:
    engine = load("mistral")
    asked = EvaluationSettings((judged("own", kind, seed, length),), PLAIN, COARSE, seed=seed)
    expected = outcome(engine, engine.evaluation_request(RAW[:length], asked, [70]))
    with monkeypatch.context() as patched:
        patched.setattr(post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": sizes[0]})
        patched.setattr(perturbation_runner, "FIRST_TOKENS", sizes[1])
        found = outcome(engine, engine.evaluation_request(RAW[:length], asked, [70]))
    assert largest_difference(found, expected) <= ROUNDING
    assert found.summary.num_sequences == expected.summary.num_sequences


@few
@given(kinds, kinds, seeds, lengths)
def test_others_beside_it_and_their_order_change_nothing(
    load: Engines, kind: str, other: str, seed: int, length: int
) -> None:
    engine = load("llama")
    its = judged("own", kind, seed, length)
    others = (
        judged("other", other, seed + 1, length),
        EvaluatedMethod("random", Random()),
        EvaluatedMethod("it", GradEllm()),
    )
    metrics = (*PI_SOFT, Metric.SOFT_NS, Metric.DELETION)
    alone, first, last = (
        outcome(
            engine, engine.evaluation_request(RAW[:length], EvaluationSettings(all_, metrics, COARSE, seed=seed), [70])
        )
        for all_ in ((its,), (its, *others), (*reversed(others), its))
    )
    assert largest_difference(alone, first) <= ROUNDING
    assert largest_difference(first, last, ("own", "other", "random", "it")) <= ROUNDING
    assert [item.name for item in first.items[:: len(metrics)]] == ["own", "other", "random", "it"]


def test_equal_seeds_give_equal_numbers_and_others_do_not(load: Engines) -> None:
    engine = load("llama")

    def found(**changes: Any) -> Outcome:
        asked = EvaluationSettings((judged("own", "random", 1, 12),), PI_SOFT, COARSE)
        return outcome(engine, engine.evaluation_request(RAW[:12], replace(asked, **changes), [70]))

    one, again, other = found(), found(), found(seed=1)
    assert largest_difference(one, again) <= ROUNDING
    assert abs(one.samples("own", Metric.PI_SOFT_NS) - other.samples("own", Metric.PI_SOFT_NS)).max() > 0.01
    # More pis and more samples leave those that are there as they are.
    more = found(pis=(0.1, 0.2, 0.35, 0.9), samples=5)
    expected, longer = (its.samples("own", Metric.PI_SOFT_NC)[0] for its in (one, more))
    assert longer[[0, 2, 3], :3] == pytest.approx(expected, abs=ROUNDING)


def test_other_streams_change_nothing(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("mistral")
    monkeypatch.setattr(scheduling, "STEPS_PER_EVALUATION_BATCH", 2)
    asked = EvaluationSettings(methods(GradEllm(), Saliency(), Random()), PLAIN, COARSE, stride=1)

    def stream() -> Request:
        return engine.evaluation_request(CHAT, asked, [70, 71, 72])

    expected = outcome(engine, stream())
    streams = [
        stream(),
        *(engine.generation_request(RAW[seed:], Sampling(max_new_tokens=40, seed=seed)) for seed in range(2)),
        stream(),
    ]
    told = run(scheduler_of(engine, max_running=4, num_tokens=500), streams)
    names = [judged.name for judged in asked.judged]
    for found in (Outcome(told[0]), Outcome(told[3])):
        assert largest_difference(found, expected, names) <= ROUNDING


def test_a_step_that_nothing_moves_is_skipped_and_counted(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    runner = engine.model.runner
    monkeypatch.setattr(runner, "embed", lambda ids: torch.zeros(len(ids), 64))
    asked = EvaluationSettings((judged("own", "random", 1, 5),), (*PI_SOFT, Metric.DELETION), removal=Removal.ZERO)
    found = outcome(engine, engine.evaluation_request(RAW[:5], asked, [70]))
    assert found.summary.skipped == found.summary.steps == (0,)
    assert [item.metric for item in found.items] == [Metric.DELETION]
    assert [its.metric for its in found.summary.metrics] == [Metric.DELETION]
    assert found.items[0].value == 0


def test_all_of_a_prompt_may_go(load: Engines, reference: Callable[[str], Reference]) -> None:
    """Where nothing is left, a zero embedding stands for it."""
    engine, given_ = load("gpt2"), PromptInput(prompt_ids=(70, 71, 72))
    row = own_scores(2, 3)
    asked = EvaluationSettings(
        (EvaluatedMethod("own", rows=row),), (Metric.INSERTION, Metric.DELETION, Metric.PI_SOFT_NS), COARSE
    )
    found = outcome(engine, engine.evaluation_request(given_, asked, [73]))
    expected = reference("gpt2").evaluate(engine.tokenize(given_), [73], asked, {("own", 0): row[0]})
    assert found.summary.num_perturbable == 3
    assert compare(found.items, expected)[0] <= TOLERANCE


# What it tells -------------------------------------------------------------------------------------------------------


def test_evaluate_tells_items_and_a_summary(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    monkeypatch.setattr(
        post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": 60}
    )  # the first step is told before the second runs
    scheduler_of(engine, max_running=1, num_tokens=200)
    asked = EvaluationSettings(methods(GradEllm(), Random()), PI_SOFT, COARSE, stride=2)
    told = list(engine.evaluate(RAW, asked, [70, 71, 72]))
    assert isinstance(told[-1], EvaluationSummary)
    kinds_ = [(item.step, item.name, item.metric) for item in told[:-1] if isinstance(item, EvaluationItem)]
    assert kinds_ == [
        (step, name, metric) for step in (0, 2) for name in ("grad_ellm 0", "random") for metric in PI_SOFT
    ]
    pool = engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    left = engine.evaluate(RAW, asked, [70, 71, 72])
    next(left)
    assert pool.num_free_tokens < pool.num_tokens
    del left
    assert pool.num_free_tokens == pool.num_tokens
    assert not engine.scheduler.running


def test_progress_rises_and_settings_are_told_resolved(load: Engines) -> None:
    engine = load("llama")
    asked = EvaluationSettings(methods(GradEllm(), Saliency()), PLAIN, COARSE, stride=1)
    found = outcome(engine, engine.evaluation_request(RAW, asked, [70, 71, 72]))
    done = [event.done for event in found.told.events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= 1
    started = found.told.events[0]
    assert isinstance(started, Started)
    assert started.evaluation is not None
    assert started.evaluation.judged[0].method == GradEllm(layers=(0, 1, 2))
    assert isinstance(found.told.events[-1], Finished)
    assert isinstance(found.told.events[-2], EvaluationSummary)


@pytest.mark.parametrize(
    ("perturb", "expected"),
    [
        (Perturb.USER, "A red fox ran. Who ran?"),
        (Perturb.PROMPT, "<s><|system|>Be brief. Be kind.</s><|user|>A red fox ran. Who ran?</s><|assistant|>"),
    ],
)
def test_what_may_be_perturbed(load: Engines, perturb: Perturb, expected: str) -> None:
    engine = load("llama")
    rows = own_scores(1, len(engine.tokenize(CHAT).tokens))
    asked = EvaluationSettings((EvaluatedMethod("own", rows=rows),), (Metric.SOFT_NS,), perturb=perturb)
    found = outcome(engine, engine.evaluation_request(CHAT, asked, [70]))
    assert found.summary.num_perturbable == len(engine.model.tokenizer(expected, add_special_tokens=False)["input_ids"])


# In memory and in time ----------------------------------------------------------------------------------------------


def test_short_texts_after_a_long_beginning_fit_the_memory(path_of: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence of a batch has a copy of the beginning's keys and values, a layer at a time."""
    engine = Engine.load(str(path_of("llama")), threads=1, method_bytes=2**23)
    a_token = engine.model.runner.layer_shapes[0].bytes_per_token
    counts, longest, last_logits = [], [], ModelRunner.last_logits

    def noting(self: ModelRunner, embeddings: Tensor, lengths_: Sequence[int], run_: Any, *args: Any) -> Tensor:
        counts.append(len(lengths_))
        longest.append(run_.length + embeddings.shape[1])
        return last_logits(self, embeddings, lengths_, run_, *args)

    monkeypatch.setattr(ModelRunner, "last_logits", noting)
    monkeypatch.setattr(perturbation_runner, "FIRST_TOKENS", 10**6)
    monkeypatch.setattr(evaluation, "BATCHES_A_GROUP", 10**6)
    monkeypatch.setattr(scheduling, "IDLE_EVALUATION_SECONDS", 1e9)
    monkeypatch.setattr(ModelCost, "bytes_of", lambda *args: 1)  # what else they take is no limit here
    messages = (Message("system", "Be kind. " * 22), Message("user", "Who i"))
    asked = EvaluationSettings(methods(GradEllm()), samples=40, stride=1)
    stream = engine.evaluation_request(PromptInput(messages=messages), asked, [70, 71, 72])
    assert stream.pass_budget is not None
    outcome(engine, stream)
    assert stream.pass_budget.sequences / 2 < max(counts) <= stream.pass_budget.sequences
    assert 2 * max(counts) * max(longest) * a_token <= engine.method_bytes


def test_of_the_texts_as_they_are_one_distribution_a_step_is_kept(
    load: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, Whole = [], evaluation.UnperturbedStep

    def noting(P: Tensor, *args: Any) -> evaluation.UnperturbedStep:
        kept.append(P.untyped_storage().nbytes())
        return Whole(P, *args)

    monkeypatch.setattr(evaluation, "Whole", noting)
    engine = load("llama")
    asked = EvaluationSettings(methods(Random()), PI_SOFT, COARSE, stride=1)
    outcome(engine, engine.evaluation_request(RAW, asked, [70, 71, 72]))
    assert kept == [engine.info.vocab_size * 4] * 3


def test_others_have_their_turns_while_intervals_are_found(load: Engines) -> None:
    engine = load("llama")
    asked = EvaluationSettings(methods(GradEllm(), Attention(), Random()), stride=1)
    found = outcome(engine, engine.evaluation_request(RAW, asked, [70, 71]))
    kinds_ = [type(event) for event in found.told.events]
    after = kinds_[len(kinds_) - kinds_[::-1].index(EvaluationItem) :]
    assert after == [Progress, Progress, EvaluationSummary, Finished]  # a metric a turn


# Refused -------------------------------------------------------------------------------------------------------------


def text(choice: str) -> Any:
    """A plain string where a member belongs."""
    return choice


ROW = own_scores(0, 29)
OWN = (EvaluatedMethod("own", rows=ROW),)
SOUND = EvaluationSettings(OWN, (Metric.PI_SOFT_NS,), COARSE)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("methods", lambda: EvaluatedMethod("", GradEllm())),
        ("scores", lambda: EvaluatedMethod("own", rows={0: [0.0, math.nan]})),
        ("scores", lambda: EvaluatedMethod("own", rows={0: [0.0], 1: [math.inf]})),
        ("methods", lambda: replace(SOUND, judged=())),
        ("methods", lambda: replace(SOUND, judged=tuple(EvaluatedMethod(str(i), Random()) for i in range(65)))),
        ("methods", lambda: replace(SOUND, judged=(*OWN, *OWN))),
        ("metrics", lambda: replace(SOUND, metrics=())),
        ("metrics", lambda: replace(SOUND, metrics=(Metric.SOFT_NS, Metric.SOFT_NS))),
        ("metrics", lambda: replace(SOUND, metrics=(text("soft_ns"),))),
        ("pis", lambda: replace(SOUND, pis=())),
        ("pis", lambda: replace(SOUND, pis=tuple(i / 101 for i in range(1, 101)))),
        ("pis", lambda: replace(SOUND, pis=(0.0, 0.5))),
        ("pis", lambda: replace(SOUND, pis=(0.5, 1.0))),
        ("pis", lambda: replace(SOUND, pis=(-0.1,))),
        ("pis", lambda: replace(SOUND, pis=(math.nan,))),
        ("pis", lambda: replace(SOUND, pis=(0.5, 0.5))),
        ("pis", lambda: replace(SOUND, pis=(0.5, 0.4))),
        ("pis", lambda: replace(SOUND, pis=(0.5, 0.5000004))),
        ("samples", lambda: replace(SOUND, samples=0)),
        ("samples", lambda: replace(SOUND, samples=1001)),
        ("stride", lambda: replace(SOUND, stride=0)),
        ("offset", lambda: replace(SOUND, offset=-1)),
        ("seed", lambda: replace(SOUND, seed=-1)),
        ("seed", lambda: replace(SOUND, seed=2**63)),
        ("perturb", lambda: replace(SOUND, perturb=text("user"))),
        ("removal", lambda: replace(SOUND, removal=text("zero"))),
        ("perturb_positions", lambda: replace(SOUND, positions=(1,), perturb=Perturb.PREFIX)),
        ("rationale", lambda: replace(SOUND, metrics=(Metric.AUPRC,))),
        ("rationale", lambda: replace(SOUND, rationale=("reason",))),
        ("labels", lambda: replace(SOUND, labels=("yes",))),
        ("labels", lambda: replace(SOUND, labels=("yes", "no", "yes"))),
        ("labels", lambda: replace(SOUND, labels=tuple(map(str, range(65))))),
    ],
)
def test_settings_refuse_what_is_undefined(field: str, make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.description


NAMED = PromptInput(prompt=RAW, segments=(Segment("reason", 2, 9), Segment("space", 9, 10)))
ALL = PromptInput(prompt=RAW, segments=(Segment("all", 0, len(RAW)),))
HUMAN = replace(SOUND, metrics=(Metric.TOKEN_F1,), rationale=("reason",))
METHOD = replace(SOUND, judged=methods(GradEllm()))


@pytest.mark.parametrize(
    ("field", "given_", "asked", "completion", "said"),
    [
        ("perturb_positions", RAW, replace(METHOD, positions=(3, 29)), [70], "29 tokens"),
        ("perturb_positions", RAW, replace(METHOD, positions=(-1,)), [70], "29 tokens"),
        ("perturb_positions", RAW, replace(METHOD, positions=(3, 3)), [70], "each once"),
        (
            "scores",
            RAW,
            replace(SOUND, judged=(EvaluatedMethod("own", rows={0: [0.0] * 28}),)),
            [70],
            "28 scores at step 0",
        ),
        ("scores", RAW, replace(SOUND, judged=(EvaluatedMethod("own", rows={0: [0.0] * 30}),)), [70], "needed: 29"),
        ("scores", RAW, replace(SOUND, stride=1), [70, 71], "no row for step 1; steps 0, 1 are"),
        ("scores", RAW, replace(SOUND, stride=2), list(range(70, 77)), "no row for step 2; steps 0, 2 .. 6 are"),
        ("scores", RAW, replace(SOUND, judged=(EvaluatedMethod("own"),)), [70], "no row for step 0"),
        (
            "scores",
            RAW,
            replace(
                SOUND, judged=(EvaluatedMethod("own", rows=own_scores(0, 29, 29)),), stride=1, perturb=Perturb.PREFIX
            ),
            [70, 71],
            "needed: 30",
        ),
        ("scores", RAW, SOUND, None, "completion"),
        ("perturb", PromptInput(prompt_ids=(256,)), METHOD, [70], "no token of the user's"),
        ("perturb", PromptInput(messages=(Message("system", "Be kind."),)), METHOD, [70], "no token of the user's"),
        ("offset", RAW, replace(METHOD, offset=2), [70, 71], "2"),
        ("offset", RAW, replace(METHOD, offset=8), None, "8"),
        ("labels", RAW, replace(SOUND, labels=("yes", "no")), [70], "or a completion"),
        ("labels[2]", RAW, replace(SOUND, labels=("yes", "no", "nay")), None, "'nay' and 'no' begin with the same"),
        ("labels[1]", RAW, replace(SOUND, labels=("yes", "")), None, "empty"),
        ("rationale", NAMED, replace(HUMAN, rationale=("reason", "because")), None, "'because' is not a segment"),
        ("rationale", RAW, HUMAN, None, "none"),
        ("rationale", ALL, replace(HUMAN, rationale=("all",)), None, "not all of them"),
        (
            "rationale",
            PromptInput(messages=CHAT.messages, segments=(Segment("kind", 10, 18, 0),)),
            replace(HUMAN, rationale=("kind",)),
            None,
            "some of the 23",
        ),
        ("removal", RAW, replace(METHOD, metrics=(Metric.DELETION,), removal=Removal.PAD), None, "no padding token"),
        (
            "samples",
            RAW,
            replace(
                METHOD,
                judged=tuple(EvaluatedMethod(str(i), Random()) for i in range(60)),
                samples=1000,
                stride=1,
                pis=PIS,
            ),
            None,
            "limit is 1,000,000",
        ),
        (
            "samples",
            "a" * 240,
            replace(METHOD, judged=tuple(EvaluatedMethod(str(i), Random()) for i in range(20)), samples=1000, pis=PIS),
            [70],
            "tokens; the limit is 50,000,000",
        ),
        ("completion", RAW, METHOD, [], "at least one"),
        ("completion_ids[1]", RAW, METHOD, [70, 300], "vocabulary"),
        ("attribution.layers", RAW, replace(METHOD, judged=methods(GradEllm(layers=4))), None, "3"),
        (
            "attribution.baseline_ids",
            RAW,
            replace(METHOD, judged=methods(Occlusion(baseline_ids=(1, 2)))),
            None,
            "are 2 tokens",
        ),
    ],
)
def test_an_evaluation_is_refused_before_any_work(
    load: Engines,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    given_: PromptInput | str,
    asked: EvaluationSettings,
    completion: list[int] | None,
    said: str,
) -> None:
    engine = load("llama")
    assert engine.model_cost.num_layers == 3  # it is found once
    for name in ("read", "step", "logits", "explained_pass", "full_sequence_logits", "last_logits"):
        monkeypatch.setattr(ModelRunner, name, lambda *args: pytest.fail("it worked"))
    if asked.judged is OWN and completion is None and field != "scores" and not asked.labels:
        completion = [70]
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluate(given_, asked, completion, Sampling(max_new_tokens=8))
    assert caught.value.field == field
    assert said in caught.value.description
    assert not engine.scheduler.has_work()


def test_a_method_that_does_not_fit_is_refused(path_of: ModelPath) -> None:
    engine = Engine.load(str(path_of("llama")), threads=1, method_bytes=2**16)
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluation_request(RAW, replace(METHOD, judged=methods(Saliency())))
    assert caught.value.field == "attribution.method"
    assert "bytes" in caught.value.description
    # Changed texts go one after the other then.
    found = outcome(engine, engine.evaluation_request(RAW, METHOD, [70]))
    assert found.summary.num_sequences > 2


def test_labels_that_the_model_does_not_know(tmp_path: Path) -> None:
    """A tokenizer may have more tokens than its model."""
    engine = Engine.load(str(save_random_model(tmp_path, vocab_size=200)), threads=1)
    asked = replace(METHOD, labels=("yes", " no"))
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluation_request(PromptInput(prompt_ids=(70, 71)), asked)
    assert caught.value.field == "labels[1]"
    assert "vocabulary ends at 199" in caught.value.description


def test_a_completion_that_ends_before_the_first_step(load: Engines) -> None:
    engine = load("llama")
    every = frozenset(range(engine.info.vocab_size))
    ending = Engine(replace(engine.model, end_ids=every))
    told = run_alone(
        ending, ending.evaluation_request(RAW, replace(METHOD, offset=2), None, Sampling(max_new_tokens=8))
    )
    assert isinstance(told.error, InvalidRequestError)
    assert told.error.field == "offset"
    assert "1 tokens has steps 0 to 0" in str(told.error)
    assert len(told.ids) == 1
    assert told.finished is None


def test_scores_that_are_not_finite_end_it(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")

    def broken(*args: Any) -> Iterator[Any]:
        yield 0, torch.full((29,), torch.nan)

    monkeypatch.setattr(post_hoc_runner, "scores_at", broken)
    told = run_alone(engine, engine.evaluation_request(RAW, METHOD, [70]))
    assert isinstance(told.error, ComputationError)
    assert "grad_ellm 0" in str(told.error)
