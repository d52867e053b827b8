"""Passes of perturbed texts."""

from __future__ import annotations

import pytest

from gradellm_engine import Engine
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.perturbation_runner import PerturbationRunner
from gradellm_engine.faithfulness.perturbed_text import PerturbedText
from gradellm_engine.model.runner import ModelRunner
from support.kv_fixtures import prefilled_slot
from support.tiny_models import save_random_model


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = save_random_model(tmp_path_factory.mktemp("llama"), "llama", seed=1, initializer_range=0.15)
    return Engine.load(str(path), dtype="float32", threads=1).model.runner


@pytest.mark.parametrize(("texts", "sizes"), [(9, [3, 3, 3]), (10, [4, 3, 3]), (5, [3, 2]), (4, [4]), (1, [1])])
def test_passes_are_about_equally_full(runner: ModelRunner, texts: int, sizes: list[int]) -> None:
    slot = prefilled_slot(runner, [60, 61, 62])
    budget = PassBudget(max_tokens=20, max_sequences=100)
    texts_runner = PerturbationRunner(runner, slot, 1, budget)
    changed = [PerturbedText((70 + i, 71, 72, 73, 74), bytes(5)) for i in range(texts)]
    passes = list(texts_runner.run(changed))
    assert [len(indexes) for indexes, _ in passes] == sizes
    assert sorted(index for indexes, _ in passes for index in indexes) == list(range(texts))
    assert texts_runner.num_run == texts
    assert budget.used == 5 * texts
    slot.close()
