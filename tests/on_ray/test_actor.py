"""The actor: rows in, rows out; an example that ends its actor repeatedly becomes a failure."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray is not installed: pip install 'gradellm[ray]'")

from gradellm.evaluation.examples import Example
from gradellm_ray import actor
from gradellm_ray.actor import MAX_TRIES, EngineActor, Tries, example_of, packed, unpacked
from gradellm_ray.evaluator import Outcome

EXAMPLE = Example("a", "line 1", (("user", "x"),), None, "Positive", ((0, 1),), {"text": "x"})
spans = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(
    st.builds(
        Example,
        st.text(),
        st.text(),
        st.none() | st.lists(st.tuples(st.text(), st.text())).map(tuple),
        st.none() | st.text(),
        st.none() | st.text(),
        st.none() | st.lists(spans).map(tuple),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_examples_survive_serialization(example: Example) -> None:
    assert example_of(packed(example)) == example


class Failing:
    """An evaluator that fails a given number of times."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def outcome(self, plan: object, example: Example) -> Outcome:
        if self.error is not None:
            raise self.error
        return Outcome({"value": 0.1})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An actor in this process, with a counter that is none."""
    monkeypatch.setattr(actor, "ray", SimpleNamespace(get=lambda value: value))
    counter = Tries()
    instance: Any = EngineActor.__new__(EngineActor)
    instance._plan, instance._evaluator = None, Failing(None)
    instance._tries = SimpleNamespace(begin=SimpleNamespace(remote=counter.begin))
    return instance


def test_outcomes_of_a_batch(engine: Any) -> None:
    batch = engine({"example": [packed(EXAMPLE)]})
    assert [unpacked(text) for text in batch["outcome"]] == [("a", Outcome({"value": 0.1}))]
    assert json.loads(batch["outcome"][0]) == {"id": "a", "record": {"value": 0.1}, "error": ""}


def test_an_example_that_kills_its_actor_is_skipped(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", end)
    engine._evaluator = Failing(RuntimeError("CUDA error"))
    for _ in range(MAX_TRIES):
        with pytest.raises(SystemExit):
            engine({"example": [packed(EXAMPLE)]})
        assert "RuntimeError: CUDA error" in capsys.readouterr().out
    ((example_id, outcome),) = [unpacked(text) for text in engine({"example": [packed(EXAMPLE)]})["outcome"]]
    assert (example_id, outcome.record) == ("a", None)
    assert outcome.error.startswith(f"line 1: its actor ended in each of {MAX_TRIES} tries")
