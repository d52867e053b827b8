"""Any method's scores at selected steps: those of the whole completion, with the rotary factors of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine import GradEllm, Switches, TokenSelection
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.methods import post_hoc, selected_steps
from gradellm_engine.methods.base import Cost, Method, Passes
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.post_hoc import CompletionContext, CompletionModel, StepScores
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.methods.selected_steps import post_hoc_scores, scores_at
from gradellm_engine.model.families import family_of
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import Target
from support.kv_fixtures import prefilled_slot
from support.methods.reference_case import Case, quick
from support.oracle import relative_error

MakeCase = Callable[..., Case]
COMPLETION = [70, 71, 72, 73, 74, 75]
STEPS = [0, 2, 3, 5]
TOLERANCE = 1e-5


def model_of(subject: Case, slot: KVSlot | None = None) -> CompletionModel:
    model, targets = subject.engine.model, [Target(token_id) for token_id in COMPLETION]
    context = CompletionContext([*subject.ids, *COMPLETION], len(subject.ids), targets, slot)
    return CompletionModel(model.runner, model.family, context, 2**30, lambda *args: 1)


def selected(
    subject: Case, switches: Switches, slot: KVSlot | None, steps: Sequence[int] = STEPS
) -> tuple[dict[int, Tensor], list[float]]:
    """The scores of selected steps, and the shares of the work that were reported."""
    resolved = switches.resolved(subject.engine.info.num_layers)
    results = list(scores_at(model_of(subject, slot), METHODS[switches.name], resolved, None, steps))
    return (
        dict(result for result in results if isinstance(result, tuple)),
        [result for result in results if isinstance(result, float)],
    )


@pytest.fixture
def subject(case: MakeCase) -> Case:
    return case("llama", "float32")


@pytest.fixture
def slot(subject: Case) -> Iterator[KVSlot]:
    """Holds all tokens but the last, as a request's slot does once its completion is there."""
    slot = prefilled_slot(subject.engine.model.runner, [*subject.ids, *COMPLETION[:-1]])
    yield slot
    slot.close()


@pytest.mark.parametrize("switches", [GradEllm(), GradSam(), Saliency(), Random(seed=3)])
def test_scores_are_those_of_the_whole_completion(subject: Case, slot: KVSlot, switches: Switches) -> None:
    found, shares = selected(subject, switches, slot)
    expected = subject.rows(switches, COMPLETION)
    assert list(found) == STEPS
    for step, scores in found.items():
        assert scores.shape == (len(subject.ids) + step,)
        assert relative_error(scores, expected[step].double()) <= TOLERANCE
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_a_pass_explains_several_steps(subject: Case, slot: KVSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = selected(subject, GradEllm(), slot)
    sizes: list[int] = []
    replay = ModelRunner.replay

    def counted(self: ModelRunner, chunks: Sequence[Any], targets: Sequence[Target]) -> list[Tensor]:
        sizes.append(len(chunks))
        return replay(self, chunks, targets)

    monkeypatch.setattr(ModelRunner, "replay", counted)
    monkeypatch.setattr(selected_steps, "TOKENS_PER_PASS", 3)
    found, shares = selected(subject, GradEllm(), slot)
    assert sizes == [3, 1]
    assert shares == [0.75, 1.0]
    for step, scores in found.items():
        assert relative_error(scores, expected[step].double()) <= TOLERANCE


def test_an_in_pass_method_needs_the_slot(subject: Case) -> None:
    assert set(selected(subject, Random(), None)[0]) == set(STEPS)
    with pytest.raises(ValueError, match="needs the KV slot"):
        selected(subject, GradEllm(), None)
    with pytest.raises(ValueError, match="grad_ellm is an in-pass method"):
        list(post_hoc_scores(model_of(subject), METHODS["grad_ellm"], GradEllm()))


@pytest.mark.parametrize(
    ("switch", "runs"),
    [
        (None, [(6, range(6))]),
        (9, [(6, range(6))]),  # the first step is beyond it already: 10 tokens
        (10, [(1, range(1)), (5, range(1, 6))]),
        (13, [(4, range(4)), (2, range(4, 6))]),
        (15, [(6, range(6))]),  # the last step is not beyond it
    ],
)
def test_steps_on_both_sides_of_a_rotary_switch_are_explained_apart(
    switch: int | None, runs: list[tuple[int, range]]
) -> None:
    """A prompt of 10 tokens and 6 steps; each score holds the number of steps of the run that it is from."""

    def explain(model: CompletionModel, switches: Switches) -> Iterator[StepScores | float]:
        for done, step in enumerate(model.completion.steps, 1):
            yield done / model.completion.num_steps
            yield StepScores(step, torch.tensor(float(model.completion.num_steps)))

    runner: Any = SimpleNamespace(switch_tokens=switch)
    context = CompletionContext([0] * 16, 10, [Target(0)] * 6)
    model = CompletionModel(runner, family_of("llama"), context, 1, lambda *args: 1)
    results = list(post_hoc_scores(model, Method(Saliency, "", Cost(Passes()), explain), Saliency()))
    scores = [(result.step, int(result.scores)) for result in results if isinstance(result, StepScores)]
    assert scores == [(step, num_steps) for num_steps, steps in runs for step in steps]
    shares = [result for result in results if isinstance(result, float)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_request_for_some_tokens_has_their_rows_of_all_tokens(case: MakeCase, name: str) -> None:
    """Of every method, in float64, where rounding hides nothing."""
    subject = case("llama")
    switches = quick(name, samples=6, steps=3)
    every = subject.steps(switches, COMPLETION)
    some = subject.steps(switches, COMPLETION, tokens=TokenSelection((1, 4)))
    assert [step.index for step in some if step.attribution is not None] == [1, 4]
    for index in (1, 4):
        row, expected = some[index].attribution, every[index].attribution
        assert row is not None
        assert expected is not None
        assert relative_error(row.scores, expected.scores.double()) <= 1e-6
        assert row.target_token_id == expected.target_token_id
        assert (row.error is None) == (expected.error is None)
        assert row.error is None or row.error == pytest.approx(expected.error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.explain is not None))
def test_one_token_costs_a_post_hoc_method_one_token(
    case: MakeCase, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes read no token after the selected one, and have one logit row and one gradient."""
    subject, sizes, gradients = case("llama"), [], []
    m, full, backward = len(subject.ids), ModelRunner.full_sequence_logits, post_hoc._backward

    def counted(self: ModelRunner, embeddings: Tensor, positions: Tensor, explained: Tensor, *args: Any) -> Tensor:
        sizes.append((embeddings.shape[1], len(explained)))
        return full(self, embeddings, positions, explained, *args)

    def counted_backward(values: Tensor, inputs: Tensor, chosen: Tensor, **options: Any) -> Tensor:
        gradients.append(len(chosen))
        return backward(values, inputs, chosen, **options)

    monkeypatch.setattr(ModelRunner, "full_sequence_logits", counted)
    monkeypatch.setattr(post_hoc, "_backward", counted_backward)
    switches = quick(name, samples=6, steps=3)
    subject.steps(switches, COMPLETION, tokens=TokenSelection((2,)))
    of_one, backward_passes = list(sizes), sum(gradients)
    sizes.clear()
    gradients.clear()
    subject.steps(switches, COMPLETION)
    assert max(length for length, _ in of_one) <= m + 2
    assert len(of_one) <= len(sizes)
    assert {count for length, count in of_one if length == m + 2} == {1}
    assert sum(gradients) == len(COMPLETION) * backward_passes
