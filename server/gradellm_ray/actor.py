"""The engine as Ray Data has it: a class whose objects live in a process each, and are called with batches of rows."""

from __future__ import annotations

import json
import os
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # which nobody watches here

import ray

from gradellm.evaluation.examples import Example
from gradellm.evaluation.run_spec import RunSpec
from gradellm_ray.evaluator import EngineOptions, Evaluator, Outcome

MOST_TRIES = 3  # of an example whose actor ended
_EXIT = 70


class Tries:
    """How often each example has been begun. An actor of its own, for it must outlive those that end."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, example_id: str) -> int:
        """Count a try, and tell which it is."""
        self._begun[example_id] += 1
        return self._begun[example_id]


class EngineActor:
    """Holds one model, for as many examples as come."""

    def __init__(self, options: EngineOptions, plan: RunSpec, tries: Any) -> None:  # noqa: ANN401  (a handle of Ray's)
        self._plan, self._tries = plan, tries
        self._evaluator = Evaluator(options)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Evaluate what `packed` has made of examples; what `unpacked` reads comes back."""
        return {"outcome": [self._outcome(example_of(text)) for text in batch["example"]]}

    def _outcome(self, example: Example) -> str:
        if ray.get(self._tries.begin.remote(example.id)) > MOST_TRIES:
            why = f"its actor ended each of the {MOST_TRIES} times that it was tried; the actors' output may say why"
            outcome = Outcome(None, f"{example.origin}: {why}")
        else:
            try:
                outcome = self._evaluator.outcome(self._plan, example)
            except Exception:
                _end(example.id)
        return json.dumps({"id": example.id, "record": outcome.record, "error": outcome.error})


def _end(example_id: str) -> NoReturn:
    """End the process: what nobody foresaw may have left a GPU unusable. Ray starts another and tries again."""
    print(f"example {example_id} ended this actor:\n{traceback.format_exc()}", flush=True)
    os._exit(_EXIT)


def packed(example: Example) -> str:
    """An example as a row's text."""
    return json.dumps(asdict(example))


def example_of(text: str) -> Example:
    """The example that `packed` has packed."""
    of: dict[str, Any] = json.loads(text)
    messages, rationale = of["messages"], of["rationale"]
    return Example(
        **{
            **of,
            "messages": None if messages is None else tuple(map(tuple, messages)),
            "rationale": None if rationale is None else tuple(map(tuple, rationale)),
        }
    )


def unpacked(text: str) -> tuple[str, Outcome]:
    """An example's id, and what came of it."""
    of = json.loads(text)
    return of["id"], Outcome(of["record"], of["error"])
