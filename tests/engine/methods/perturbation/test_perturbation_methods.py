"""Occlusion, LIME and ReAGent against their definitions, one changed prompt at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine import AttributionSettings, Contrast
from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.perturbation.lime import KERNEL_WIDTH, Lime, fit, sample_masks
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.perturbation.reagent import ReAgent
from gradellm_engine.methods.post_hoc import Objective
from support.oracle import relative_error
from support.reference_case import PROMPT, Case, error_of, scores_of

MakeCase = Callable[..., Case]
SHORT = "A fox."  # seven tokens with the first, so that all subsets can be enumerated


def objective(logits: Tensor, token_id: int, kind: Objective) -> Tensor:
    match kind:
        case Objective.LOGIT:
            return logits[..., token_id]
        case Objective.LOG_PROB:
            return logits.log_softmax(-1)[..., token_id]
        case Objective.PROB:
            return logits.softmax(-1)[..., token_id]


@pytest.mark.parametrize("baseline_ids", [(), tuple(range(65, 65 + len(PROMPT) + 1))])
@pytest.mark.parametrize("kind", Objective)
def test_occlusion_is_what_the_target_loses(case: MakeCase, kind: Objective, baseline_ids: tuple[int, ...]) -> None:
    subject = case("llama", "float32")
    rows = subject.rows(Occlusion(kind, baseline_ids=baseline_ids))
    m = len(subject.ids)
    for row, (ids, token_id) in zip(rows, subject.prefixes(), strict=True):
        own = subject.embed(ids)
        expected = torch.zeros(len(ids), dtype=torch.float64)
        for token in range(m):
            changed = own.clone()
            changed[token] = subject.embed(baseline_ids)[token] if baseline_ids else 0
            with torch.no_grad():
                logits = subject.logits(torch.stack([own, changed]))
            expected[token] = -objective(logits, token_id, kind).diff()[0]
        assert relative_error(row, expected) <= 1e-5


def test_occlusion_by_a_contrast_is_the_difference(case: MakeCase) -> None:
    subject = case("llama", "float32")
    rows = subject.rows(Occlusion(), contrast=Contrast(token_id=80))
    own, other = subject.rows(Occlusion()), subject.rows(Occlusion(), target_token_id=80)
    for row, a, b in zip(rows, own, other, strict=True):
        assert relative_error(row, (a - b).double()) <= 1e-5


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_batches_change_nothing(case: MakeCase, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    subject = case("llama", "float32")
    expected = subject.rows(Occlusion()), subject.rows(Lime(samples=20))
    monkeypatch.setattr(post_hoc.CompletionModel, "sequences_a_pass", lambda self, *, graph=False: at_once)
    for ours, theirs in zip((subject.rows(Occlusion()), subject.rows(Lime(samples=20))), expected, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            assert relative_error(row, other.double()) <= 1e-5


def exact_lime(case: Case, ids: list[int], m: int, token_id: int) -> Tensor:
    """The fit over all subsets, each counted as often as it is drawn. [m]"""
    kept = torch.tensor(list(itertools.product([False, True], repeat=m)))
    kept = kept[kept.sum(-1) < m]  # the prompt itself is one sample of many
    removed = m - kept.sum(-1)
    drawn = torch.tensor([1 / m / math.comb(m, int(count)) for count in removed], dtype=torch.float64)
    distance = 1 - (kept.sum(-1) / m).sqrt().double()
    weights = drawn * torch.exp(-(distance**2) / (2 * KERNEL_WIDTH**2))
    embeddings = case.embed(ids).repeat(len(kept), 1, 1)
    embeddings[:, :m][~kept] = 0
    with torch.no_grad():
        values = case.logits(embeddings)[:, token_id]
    design = torch.cat((torch.ones(len(kept), 1), kept), dim=1).double()
    root = weights.sqrt()[:, None]
    solution: Tensor = torch.linalg.lstsq(root * design, root * values[:, None]).solution
    return solution[1:, 0]


def test_lime_is_within_its_error_of_the_exact_fit(case: MakeCase) -> None:
    subject = case("llama", "float32")
    ids = subject.engine.tokenize(SHORT).ids
    exact = exact_lime(subject, ids, len(ids), 70)
    misses, errors = 0, []
    for seed in range(8):
        (step,) = subject.engine.attribute(SHORT, [70], settings(Lime(samples=2000, seed=seed)))
        difference = (scores_of(step).double() - exact).abs().max().item()
        errors.append(error_of(step))
        misses += difference > 3 * error_of(step)
        assert difference <= 6 * error_of(step)
    assert misses <= 1
    (step,) = subject.engine.attribute(SHORT, [70], settings(Lime(samples=200)))
    assert error_of(step) > 2 * max(errors)  # it falls as 1 / sqrt(samples)


def settings(switches: Lime) -> AttributionSettings:
    return AttributionSettings(method=switches)


def test_lime_finds_a_linear_model_again() -> None:
    kept = sample_masks(Lime(samples=100), 6).double()
    slopes = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    found, errors = fit(kept, 3 + kept @ slopes, torch.rand(100, dtype=torch.float64) + 0.1)
    assert torch.allclose(found, slopes)
    assert errors.max() <= 1e-9


def test_lime_draws_how_many_and_which(case: MakeCase) -> None:
    kept = sample_masks(Lime(samples=6001), 5)
    assert kept[0].all()
    removed = (~kept[1:]).sum(-1)
    assert [round((removed == count).double().mean().item(), 1) for count in range(1, 6)] == [0.2] * 5
    assert (kept[1:].double().mean(0) - 0.4).abs().max() <= 0.03


def test_reagent_adds_up_log_odds_of_what_replacing_costs(case: MakeCase) -> None:
    subject = case("llama")
    switches = ReAgent(samples=12, seed=4)
    m = len(subject.ids)
    draws = switches.draws("reagent")
    uniforms = draws.random((12, m))
    replaced = [draws.choice(m, max(1, round(0.3 * m)), replace=False).tolist() for _ in range(12)]
    with torch.no_grad():
        predicted = subject.reference(torch.tensor([subject.ids])).logits[0].softmax(-1)
    for row, (ids, token_id) in zip(subject.rows(switches), subject.prefixes(), strict=True):
        importance = torch.zeros(m, dtype=torch.float64)
        for chosen, numbers in zip(replaced, uniforms, strict=True):
            changed = list(ids)
            for place in chosen:
                if place:  # nothing predicts the first
                    cumulative = predicted[place - 1].cumsum(-1)
                    changed[place] = int((cumulative < numbers[place]).sum())
            with torch.no_grad():
                before, after = subject.logits(torch.stack([subject.embed(ids), subject.embed(changed)])).softmax(-1)
            lost = (before - after)[token_id].item()
            step = math.log((1 + lost) / (1 - lost))
            for place in range(m):
                importance[place] += step if place in chosen else -step
        assert relative_error(row[:m], importance.softmax(0)) <= 1e-5
        assert not row[m:].any()
