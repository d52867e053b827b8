"""Candidates by name, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradellm_bench.study.prototypes.capture import StepCapture
from gradellm_bench.study.prototypes.formulas import knockout
from gradellm_bench.study.prototypes.scores import CANDIDATES, chosen, read_most, score_fn
from gradellm_engine import Engine, PromptInput


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), dtype="float32", use_graphs=False)


def test_candidates_are_chosen_by_name() -> None:
    assert chosen(None) == list(CANDIDATES)
    assert chosen(["root", "replay_4"]) == ["root", "replay_4"]
    with pytest.raises(ValueError, match="'rot' is not a formula; there are removal"):
        chosen(["root", "rot"])


def test_every_candidate_scores_the_prefix(engine: Engine) -> None:
    ids = engine.tokenize(PromptInput(prompt="A red")).ids
    found = score_fn(engine.model, CANDIDATES)(ids, 71)
    assert list(found) == list(CANDIDATES)
    for name, scores in found.items():
        assert scores.shape == (len(ids),), name
        assert scores.dtype == np.float64, name
        assert np.isfinite(scores).all(), name
    np.testing.assert_array_equal(found["replay_8"], found["replay_16"])  # both replay all positions


def test_the_positions_that_are_read_most(engine: Engine) -> None:
    ids = engine.tokenize(PromptInput(prompt="A red fox sat by the")).ids
    step = StepCapture(engine.model, ids, 71).step()
    *read, last = read_most(step, 3)
    scores = knockout(step)[:-1].tolist()
    assert last == len(ids) - 1
    assert len(read) == 3
    assert read == sorted(sorted(range(last), key=lambda i: -scores[i])[:3])
