"""The cost of an evaluation and its effect on others: perturbed texts, ratios of rounds, gaps."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.conftest import FakeTime
from gradellm_bench.models import BenchModel
from gradellm_bench.served import evaluation_interference
from gradellm_bench.served.evaluation_interference import _perturbed_texts, compare_cost, compare_gaps
from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings
from gradellm_engine.tokenization.prompt_input import PromptInput

PIS, SAMPLES = 19, 3


def test_every_mask_is_run_with_its_complement() -> None:
    perturbable = np.array([False, True, True, True, False, True])
    scores = np.array([9.0, 0.1, 0.2, 0.3, 9.0, 0.4])
    settings = EvaluationSettings((EvaluatedMethod("given", rows={0: scores.tolist()}),))
    texts = np.array(_perturbed_texts(settings, scores, perturbable))
    assert texts.shape == (2 + 2 * PIS * SAMPLES, 6)
    assert texts[:, ~perturbable].all()
    assert texts[0].all()
    assert not texts[1, perturbable].any()
    kept, complement = texts[2:, perturbable].reshape(2, PIS * SAMPLES, 4)
    assert (kept != complement).all()


def test_costs_are_compared_round_by_round(
    tiny: BenchModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tiny.engine(max_running=2, num_tokens=1000)
    warm_up, first, second = [50.0, 50.0, 50.0], [1.0, 3.0, 1.5], [2.0, 8.0, 1.0]
    monkeypatch.setattr(evaluation_interference, "time", FakeTime([*warm_up, *first, *second]))
    compare_cost(engine, tiny.reference, PromptInput(prompt="w5 w6 w7 w8 w9"), rounds=2)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        "this engine: 1500 ms, 1.00 of this engine's",
        "one forward a text: 5500 ms, 3.50 of this engine's",
        "bare batches: 1250 ms, 1.00 of this engine's",
    ]
    assert re.fullmatch(r"116 perturbed texts, \d+ of them distinct; 5 of 5 tokens are perturbed", lines[3])


def test_gaps_are_those_between_tokens_of_a_stream(
    tiny: BenchModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation_interference, "NEW_TOKENS", 4)
    monkeypatch.setattr(evaluation_interference, "STREAMS", 3)
    monkeypatch.setattr(evaluation_interference, "STARTED_TOKENS", 50)
    monkeypatch.setattr(evaluation_interference, "_SENTENCES", ("w1 w2 w3",))  # words of the tiny model
    compare_gaps(tiny.engine(max_running=2, num_tokens=2000), rounds=2)
    mean, percentile, counts = capsys.readouterr().out.splitlines()
    assert "mean" in mean
    assert "99th percentile" in percentile
    found = re.search(r"of (\d+) gaps; the evaluation ran ([\d,]+) tokens meanwhile", counts)
    assert found is not None
    assert int(found[1]) == 2 * 3 * (4 - 1)
    assert tiny.loaded.runner.pool.num_running == 0  # the evaluation was cancelled
