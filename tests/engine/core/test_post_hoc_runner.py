"""Methods over whole completions: costs in tokens, passes within the memory, refusals before any pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gradellm_engine import AttributionSettings, Engine, EvaluatedMethod, GradEllm, InvalidRequestError, NormaliseOver
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.core.post_hoc_runner import MAX_EVALUATION_PASS_TOKENS, PostHocRunner
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.post_hoc import CompletionContext, StepScores
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.passes.base import Target
from gradellm_engine.tokenization.prompt import Prompt
from support.kv_fixtures import prefilled_slot
from support.oracle import relative_error

COMPLETION = [70, 71, 72]
m, n = 11, 5  # prompt and completion tokens


@pytest.fixture
def runner(engine: Engine) -> PostHocRunner:
    return engine.post_hoc


def context_of(prompt: Prompt, **options: Any) -> CompletionContext:
    ids = [*prompt.ids, *COMPLETION]
    return CompletionContext(ids, len(prompt.ids), [Target(token_id) for token_id in COMPLETION], **options)


@pytest.mark.parametrize(
    ("switches", "tokens"),
    [
        (None, 0),  # scores of the caller's own
        (Random(), 0),
        (GradEllm(), 3 * n),  # one pass forward, one backward, over the completion alone
        (GradSam(), 3 * n),
        (Saliency(), (1 + 2 * n) * (m + n)),
        (IntegratedGradients(steps=4), (4 + 2 + 2 * 4 * n) * (m + n)),
        (Occlusion(), (m + 1) * (m + n)),
    ],
)
def test_a_backward_pass_counts_as_two_forward_passes(switches: Any, tokens: int) -> None:
    assert PostHocRunner.num_tokens_read(EvaluatedMethod("it", switches), m, n, n) == tokens


@pytest.mark.parametrize(
    ("switches", "tokens"),
    [(GradEllm(), 3 * 2), (Saliency(), (1 + 2 * 2) * (m + n)), (Occlusion(), (m + 1) * (m + n))],
)
def test_some_steps_take_their_own_passes(switches: Any, tokens: int) -> None:
    assert PostHocRunner.num_tokens_read(EvaluatedMethod("it", switches), m, n, 2) == tokens


@pytest.mark.parametrize(("baseline", "message"), [((65, 66), "are 2 tokens; give one for each"), ((261,) * m, "260")])
def test_a_baseline_without_a_token_for_each_of_the_prompt_is_refused(
    runner: PostHocRunner, baseline: Sequence[int], message: str
) -> None:
    method = METHODS["occlusion"]
    runner.check(method, Occlusion(), m, n)
    runner.check(method, Occlusion(baseline_ids=(260,) * m), m, n)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        runner.check(method, Occlusion(baseline_ids=tuple(baseline)), m, n)
    assert caught.value.field.startswith("attribution.baseline_ids")


def test_a_method_beyond_the_memory_is_refused(engine: Engine) -> None:
    runner = PostHocRunner(engine.model, engine.estimate(Saliency(), m, n).bytes)
    runner.model_cost = engine.model_cost
    runner.check(METHODS["saliency"], Saliency(), m, n)
    with pytest.raises(InvalidRequestError, match="bytes") as caught:
        runner.check(METHODS["saliency"], Saliency(), m + 10, n)
    assert caught.value.field == "attribution.method"
    runner.check(METHODS["saliency"], Saliency(), m + 10, n, 1)  # one token fits


def test_scores_of_all_steps_are_those_of_requests(engine: Engine, runner: PostHocRunner) -> None:
    prompt = engine.tokenize("a fox")
    results = list(runner.explain(METHODS["occlusion"], Occlusion(), context_of(prompt)))
    rows = {result.step: result.scores for result in results if isinstance(result, StepScores)}
    steps = list(engine.attribute(prompt, COMPLETION, AttributionSettings(Occlusion())))
    assert sorted(rows) == [step.index for step in steps]
    for step in steps:
        assert step.attribution is not None
        assert relative_error(rows[step.index][: len(prompt.ids)], step.attribution.scores.double()) <= 1e-6


def test_evaluated_methods_normalise_over_the_prompt_s_tokens(engine: Engine, runner: PostHocRunner) -> None:
    prompt = engine.tokenize("a fox")
    slot = prefilled_slot(engine.model.runner, [*prompt.ids, *COMPLETION[:-1]])
    for over in NormaliseOver:
        method = GradEllm(layers=(0, 1, 2), normalise_over=over)
        results = runner.scores_at(prompt, EvaluatedMethod("it", method), context_of(prompt, slot=slot), [0, 2])
        rows = dict(result for result in results if isinstance(result, tuple))
        steps = list(engine.attribute(prompt, COMPLETION, AttributionSettings(method)))
        for step, row in rows.items():
            expected = steps[step].attribution
            assert expected is not None
            assert relative_error(row[: len(prompt.ids)], expected.scores.double()) <= 1e-5
        assert sorted(rows) == [0, 2]
    slot.close()


def test_scores_of_the_caller_s_own_are_not_computed(engine: Engine, runner: PostHocRunner) -> None:
    prompt = engine.tokenize("a fox")
    own = EvaluatedMethod("own", rows={0: [0.0] * len(prompt.ids)})
    with pytest.raises(ValueError, match="the caller's own"):
        runner.scores_at(prompt, own, context_of(prompt), [0])


@pytest.mark.parametrize("num_tokens", [1, 40, 250])
@pytest.mark.parametrize("memory", [1, 10**6, 10**8, 10**13])
def test_the_passes_of_an_evaluation_fit_the_memory(engine: Engine, num_tokens: int, memory: int) -> None:
    runner = PostHocRunner(engine.model, memory)
    runner.model_cost = cost = engine.model_cost
    budget = runner.pass_budget(num_tokens)
    full = budget.max_tokens // num_tokens  # sequences of the greatest length
    assert full <= 1 or full * cost.bytes_of(num_tokens, 1, False) <= memory  # a pass has one at least
    layer = engine.model.runner.layer_shapes[0].bytes_per_token
    assert budget.max_sequences == 1 or budget.max_sequences * 2 * num_tokens * layer <= memory
    assert budget.max_sequences >= 1
    assert 1 <= budget.max_tokens <= MAX_EVALUATION_PASS_TOKENS["cpu"]
    doubled = PostHocRunner(engine.model, 2 * memory)
    doubled.model_cost = cost
    assert doubled.pass_budget(num_tokens).max_tokens >= budget.max_tokens


def test_the_limit_of_a_pass_is_a_number_of_tokens(engine: Engine) -> None:
    """Beyond it, more memory makes no larger passes."""
    runner = PostHocRunner(engine.model, 10**13)
    runner.model_cost = engine.model_cost
    assert runner.pass_budget(40).max_tokens == MAX_EVALUATION_PASS_TOKENS["cpu"]
