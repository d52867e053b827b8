"""ReAGent against its definition, one perturbed prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gradellm_engine.methods.perturbation.reagent import ReAgent
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


def test_reagent_adds_log_odds_of_the_drops(case: MakeCase) -> None:
    subject = case("llama")
    switches = ReAgent(samples=12, seed=4)
    m = len(subject.ids)
    generator = switches.generator("reagent")
    uniforms = generator.random((12, m))
    replaced = [generator.choice(m, max(1, round(0.3 * m)), replace=False).tolist() for _ in range(12)]
    with torch.no_grad():
        predicted = subject.reference(torch.tensor([subject.ids])).logits[0].softmax(-1)
    for row, (ids, token_id) in zip(subject.rows(switches), subject.prefixes(), strict=True):
        importance = torch.zeros(m, dtype=torch.float64)
        for chosen, numbers in zip(replaced, uniforms, strict=True):
            changed = list(ids)
            for position in chosen:
                if position:  # the first token has no prediction
                    cumulative = predicted[position - 1].cumsum(-1)
                    changed[position] = int((cumulative < numbers[position]).sum())
            with torch.no_grad():
                before, after = subject.logits(torch.stack([subject.embed(ids), subject.embed(changed)])).softmax(-1)
            lost = (before - after)[token_id].item()
            step = math.log((1 + lost) / (1 - lost))
            for position in range(m):
                importance[position] += step if position in chosen else -step
        assert relative_error(row[:m], importance.softmax(0)) <= 1e-5
        assert not row[m:].any()
