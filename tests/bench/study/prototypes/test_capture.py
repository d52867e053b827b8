"""Captured steps against the oracle in float64, Transformers' own attention with masks, and the engine's methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradellm_bench.study.candidates import CANDIDATES
from gradellm_bench.study.prototypes.capture import LOGIT, RELEVANCE, StepCapture, StepTensors
from gradellm_bench.study.prototypes.formulas import knockout, knockout_positive, replayed_knockout, replayed_relevance
from gradellm_engine import AttributionSettings, Engine, PromptInput
from support.oracle import Oracle, relative_error

PROMPT = "A red fox sat by the"
TARGET = 71
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), dtype="float32", use_graphs=False)


@pytest.fixture(scope="module")
def ids(engine: Engine) -> list[int]:
    return engine.tokenize(PromptInput(prompt=PROMPT)).ids


@pytest.fixture(scope="module")
def capture(engine: Engine, ids: list[int]) -> StepCapture:
    return StepCapture(engine.model, ids, TARGET)


@pytest.fixture(scope="module")
def step(capture: StepCapture) -> StepTensors:
    return capture.step()


def scores_of(engine: Engine, name: str) -> torch.Tensor:
    *_, last = engine.attribute(PROMPT, [TARGET], AttributionSettings(CANDIDATES[name]))
    assert last.attribution is not None
    return last.attribution.scores.double()


@pytest.mark.parametrize("family", ["llama", "mistral"])  # mistral has a window
def test_attention_and_gradients_equal_the_oracle(model_path: Callable[[str], Path], family: str) -> None:
    path = model_path(family)
    model = Engine.load(str(path), dtype="float32", use_graphs=False)
    ids = model.tokenize(PromptInput(prompt=PROMPT)).ids
    found, oracle = StepCapture(model.model, ids, TARGET).step(), Oracle(path)
    other = int(oracle.model(torch.tensor([ids])).logits[0, -1].argsort()[-1])
    layers, contrasts = oracle.layers(ids, TARGET), oracle.layers(ids, TARGET, other)
    for k, (layer, contrasted) in enumerate(zip(layers, contrasts, strict=True)):
        assert relative_error(found.A[k], layer.weights) <= TOLERANCE
        assert relative_error(found.Q[k], layer.q) <= TOLERANCE
        assert relative_error(found.W[k], layer.w) <= TOLERANCE
        assert relative_error(found.U["logit"][k], torch.einsum("hd,hsd->hs", layer.w, layer.v)) <= TOLERANCE
        assert relative_error(found.U["contrast"][k], torch.einsum("hd,hsd->hs", contrasted.w, layer.v)) <= TOLERANCE
        assert found.scaling[k] == pytest.approx(layer.q.shape[-1] ** -0.5)


def test_sums_equal_the_engine(engine: Engine, step: StepTensors) -> None:
    assert relative_error(knockout(step), scores_of(engine, "knockout_no_sink")) <= TOLERANCE
    assert relative_error(knockout_positive(step), scores_of(engine, "knockout_positive_no_sink")) <= TOLERANCE


def test_drops_equal_masked_attention(model_path: Callable[[str], Path], ids: list[int], step: StepTensors) -> None:
    """Token i is hidden from the last position in all layers."""
    reference = AutoModelForCausalLM.from_pretrained(
        model_path("llama"), dtype=torch.float64, attn_implementation="eager"
    )
    S = len(ids)
    mask = torch.zeros(S, 1, S, S, dtype=torch.float64).masked_fill(torch.ones(S, S).triu(1).bool(), -1e9)
    for i in range(S - 1):
        mask[i, 0, -1, i] = -1e9
    with torch.no_grad():
        logits = reference(torch.tensor([ids] * S), attention_mask=mask, use_cache=False).logits[:, -1, TARGET]
    assert step.drops[-1] == 0
    assert relative_error(step.drops[:-1], logits[-1] - logits[:-1]) <= 1e-4


def test_residual_products_are_gradient_times_input(
    model_path: Callable[[str], Path], ids: list[int], step: StepTensors
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_path("llama"), dtype=torch.float64)
    output = reference(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    streams = output.hidden_states[:-1]  # the last one is normalised
    gradients = torch.autograd.grad(output.logits[0, -1, TARGET], streams)
    for row, x, gradient in zip(step.residual_products[:-1], streams, gradients, strict=True):
        assert relative_error(row, (x[0] @ gradient[0, -1]).detach()) <= TOLERANCE


def test_mixing_is_the_mean_attention(model_path: Callable[[str], Path], ids: list[int], step: StepTensors) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        model_path("llama"), dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        weights = reference(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    assert relative_error(step.mixing, torch.stack([layer[0].mean(0) for layer in weights])) <= TOLERANCE
    norms = step.V.norm(dim=-1).repeat_interleave(weights[0].shape[1] // step.V.shape[1], 1)
    expected = torch.stack([(layer[0] * n[:, None]).sum(0) for layer, n in zip(weights, norms, strict=True)])
    assert relative_error(step.value_mixing, expected) <= TOLERANCE


def test_a_replay_of_all_positions_is_a_full_backward_pass(
    engine: Engine, capture: StepCapture, ids: list[int]
) -> None:
    everything = list(range(len(ids)))
    relevance = replayed_relevance(capture.replay(everything, RELEVANCE))
    assert relative_error(relevance, scores_of(engine, "relevance")) <= TOLERANCE
    assert relative_error(capture.replay(everything, LOGIT).norms, scores_of(engine, "saliency")) <= TOLERANCE


def test_a_replay_conserves_relevance(capture: StepCapture, ids: list[int]) -> None:
    """Any positions may be replayed: what they pass on sums to the logit, as the tiny model has no biases."""
    S = len(ids)
    total = replayed_relevance(capture.replay(list(range(S)), RELEVANCE)).sum()
    for positions in ([S - 1], [1, 3, S - 1]):
        assert replayed_relevance(capture.replay(positions, RELEVANCE)).sum() == pytest.approx(float(total), rel=1e-4)


def test_a_replay_of_the_last_position_is_the_step(capture: StepCapture, ids: list[int], step: StepTensors) -> None:
    found = replayed_knockout(capture.replay([len(ids) - 1], LOGIT))
    assert relative_error(found, knockout(step)) <= TOLERANCE


def test_a_prefix_of_one_token_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="ids has 1 tokens; a step needs a prefix of at least 2"):
        StepCapture(engine.model, [5], TARGET)
