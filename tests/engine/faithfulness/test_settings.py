"""Settings of evaluations refuse what is undefined."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    InvalidRequestError,
    Metric,
    Perturb,
)
from gradellm_engine.methods.random import Random
from support.faithfulness.evaluations import (
    COARSE,
    own_scores,
)

Engines = Callable[..., Engine]


def text(choice: str) -> Any:
    """A plain string in place of an enum member."""
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
        ("methods", lambda: replace(SOUND, methods=())),
        ("methods", lambda: replace(SOUND, methods=tuple(EvaluatedMethod(str(i), Random()) for i in range(65)))),
        ("methods", lambda: replace(SOUND, methods=(*OWN, *OWN))),
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
def test_undefined_settings_are_refused(field: str, make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.description
