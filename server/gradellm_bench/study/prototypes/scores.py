"""The candidates' scores of one prefix and target, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradellm_bench.study.measure import ScoreFn, Scores
from gradellm_bench.study.prototypes.capture import RELEVANCE, StepCapture, StepTensors
from gradellm_bench.study.prototypes.formulas import FORMULAS, knockout, replayed_relevance
from gradellm_engine.model.loader import LoadedModel

REPLAYS: Mapping[str, int] = {"replay_4": 4, "replay_8": 8, "replay_16": 16}
"""Relevance by a replay of so many positions, those that knockout puts first, beside the last one."""
CANDIDATES = (*FORMULAS, *REPLAYS)


def chosen(names: Sequence[str] | None) -> list[str]:
    """Some of the candidates; all for None.

    Raises:
        ValueError: for a name that is not one of them.
    """
    if names is None:
        return list(CANDIDATES)
    if unknown := [name for name in names if name not in CANDIDATES]:
        raise ValueError(f"{unknown[0]!r} is not a formula; there are {', '.join(CANDIDATES)}")
    return list(names)


def score_fn(model: LoadedModel, names: Sequence[str]) -> ScoreFn:
    """Computes the candidates `names` for a prefix and the token after it."""

    def scores(ids: list[int], target: int) -> Mapping[str, Scores]:
        capture = StepCapture(model, ids, target)
        step = capture.step()
        found = {name: FORMULAS[name](step) for name in names if name in FORMULAS}
        for name in names:
            if name in REPLAYS:
                replay = capture.replay(read_most(step, REPLAYS[name]), RELEVANCE)
                found[name] = replayed_relevance(replay)
        return {name: found[name].numpy() for name in names}

    return scores


def read_most(step: StepTensors, count: int) -> list[int]:
    """The `count` positions of the highest knockout scores and the last one, in order."""
    scores: Tensor = knockout(step)[:-1]
    best = scores.topk(min(count, len(scores))).indices
    return sorted({*torch.as_tensor(best).tolist(), len(scores)})
