"""An example's record depends on the example and the run spec only, and equals a server's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.evaluation.fake_evaluator import write_data
from gradellm.cli import main as cli
from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.examples import Example
from gradellm.evaluation.presets import PRESETS as DATA_PRESETS
from gradellm.evaluation.presets import custom_preset
from gradellm.evaluation.results_file import read_results
from gradellm.evaluation.run_spec import PRESETS, RunSpec
from gradellm_engine import Engine
from gradellm_engine.core import scheduler
from gradellm_ray.evaluator import EngineOptions, Evaluator, Outcome
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PLAN = RunSpec(
    DATA_PRESETS["sst2"],
    {"grad_ellm": {"method": "grad_ellm"}, "saliency": {"method": "saliency"}, "random": {"method": "random"}},
    metrics=("pi_soft_ns", "pi_soft_nc", "deletion"),
    pis=(0.25, 0.5, 0.75),
    samples=2,
)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(EngineOptions())


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    data = write_data(
        tmp_path_factory.mktemp("data") / "d.jsonl", 6, e1="a truly dismal one " * 3, e4="and it was lovely"
    )
    return load_rows(data, PLAN.preset).examples


@pytest.fixture(scope="module")
def expected(evaluator: Evaluator, examples: tuple[Example, ...]) -> dict[str, Outcome]:
    return dict(evaluator.outcomes(PLAN, examples))


def test_results_do_not_depend_on_order_or_history(
    evaluator: Evaluator, examples: tuple[Example, ...], expected: dict[str, Outcome]
) -> None:
    assert dict(evaluator.outcomes(PLAN, examples[::-1])) == expected
    assert dict(Evaluator(EngineOptions()).outcomes(PLAN, examples[3:4])) == {"e3": expected["e3"]}


def test_how_busy_the_machine_is_moves_no_digit(
    evaluator: Evaluator,
    examples: tuple[Example, ...],
    expected: dict[str, Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "IDLE_EVALUATION_SECONDS", 1e-9)  # as if a text took forever
    assert dict(evaluator.outcomes(PLAN, examples)) == expected


def test_the_evaluator_equals_a_server(
    examples: tuple[Example, ...], expected: dict[str, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "d.jsonl", 6, e1="a truly dismal one " * 3, e4="and it was lovely")
    server = RunningServer(Engine.load(threads=1), ServerSettings(listen="127.0.0.1:0"))
    flags = ["--methods", "grad_ellm,saliency,random", "--metrics", "pi_soft_ns,pi_soft_nc,deletion"]
    flags += ["--pis", "0.25,0.5,0.75", "--samples", "2", "--target", server.address, "--out", str(tmp_path / "o")]
    try:
        assert cli(["evaluate", "--preset", "sst2", "--data", str(data), *flags]) == 0
    finally:
        server.close()
    done = read_results(tmp_path / "o" / "results.jsonl").done
    assert done.keys() == expected.keys()
    for example_id, outcome in expected.items():
        assert_same_but_for_last_digits(json.loads(json.dumps(outcome.record)), done[example_id])


def assert_same_but_for_last_digits(actual: Any, expected: Any) -> None:
    """A server's batch sizes depend on time, and may include texts of other requests."""
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            assert_same_but_for_last_digits(value, expected[name])
    elif isinstance(actual, list):
        assert len(actual) == len(expected)
        for first, second in zip(actual, expected, strict=True):
            assert_same_but_for_last_digits(first, second)
    elif isinstance(actual, float):
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert actual == expected


def test_an_invalid_example_is_an_outcome(evaluator: Evaluator, examples: tuple[Example, ...]) -> None:
    message = (("user", "word " * 5000),)
    long = replace(examples[0], messages=message)
    outcome = evaluator.outcome(PLAN, long)
    assert outcome.record is None
    assert outcome.error.startswith(f"{long.origin}: input.messages: 25,004 characters; the limit is ")


@pytest.mark.parametrize("spans", [((0, 100),), ((0, 1),)])
def test_an_unusable_rationale_skips_only_its_metrics(evaluator: Evaluator, spans: tuple[tuple[int, int], ...]) -> None:
    text = "It was a truly lovely film."
    preset = custom_preset("{text}", label_words=("Positive", "Negative"))
    plan = replace(PLAN, preset=preset, metrics=("pi_soft_ns", "auprc"), pis=(0.5,), samples=1)
    spans = tuple((start, min(end, len(text))) for start, end in spans)
    example = Example("a", "line 1", (("user", text),), None, None, spans, {})
    record = evaluator.outcome(plan, example).record
    assert record is not None
    assert ("auprc" in record["metrics"]) == (spans != ((0, len(text)),))
    assert "pi_soft_ns" in record["metrics"]


def test_model_description(evaluator: Evaluator) -> None:
    description = evaluator.describe_model(PRESETS)
    assert description.info.model.name == "gradellm demo model"
    assert {method.name for method in description.info.methods} >= {"grad_ellm", "random"}
    assert all(reason for reason in description.refusals.values())


def test_unexpected_errors_are_raised(
    evaluator: Evaluator, examples: tuple[Example, ...], expected: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as broken:
        broken.setattr(scheduler.Scheduler, "_evaluate", fail)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            evaluator.outcome(PLAN, examples[0])
    assert evaluator.outcome(PLAN, examples[0]) == expected[examples[0].id]  # and it holds nothing of it
