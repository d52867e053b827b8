"""The evaluator as a Ray Data actor: one object per process, called with batches of rows."""

from __future__ import annotations

import json
import os
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # an actor has no terminal

import ray

from gradellm.evaluation.examples import Example
from gradellm.evaluation.run_spec import RunSpec
from gradellm_ray.evaluator import EngineOptions, Evaluator, Outcome

MAX_TRIES = 3  # of an example whose actor ended
_EXIT_STATUS = 70


class Tries:
    """Counts the tries of each example. An actor of its own, so that it outlives engine actors that end."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, example_id: str) -> int:
        """Count a try; its number."""
        self._begun[example_id] += 1
        return self._begun[example_id]


class EngineActor:
    """Holds one engine and evaluates batches of examples."""

    def __init__(self, options: EngineOptions, plan: RunSpec, tries: Any) -> None:  # noqa: ANN401  (a handle of Ray's)
        self._plan, self._tries = plan, tries
        self._evaluator = Evaluator(options)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Evaluate rows made by `packed`; returns rows for `unpacked`."""
        return {"outcome": [self._outcome(example_of(text)) for text in batch["example"]]}

    def _outcome(self, example: Example) -> str:
        if ray.get(self._tries.begin.remote(example.id)) > MAX_TRIES:
            why = f"its actor ended in each of {MAX_TRIES} tries; see the actors' output for the reason"
            outcome = Outcome(None, f"{example.origin}: {why}")
        else:
            try:
                outcome = self._evaluator.outcome(self._plan, example)
            except Exception:
                _exit(example.id)
        return json.dumps({"id": example.id, "record": outcome.record, "error": outcome.error})


def _exit(example_id: str) -> NoReturn:
    """End the process, since an unexpected error may have left a GPU unusable. Ray starts another and tries again."""
    print(f"example {example_id} ended this actor:\n{traceback.format_exc()}", flush=True)
    os._exit(_EXIT_STATUS)


def packed(example: Example) -> str:
    """An example as the text of a row."""
    return json.dumps(asdict(example))


def example_of(text: str) -> Example:
    """The example of a row's text."""
    fields: dict[str, Any] = json.loads(text)
    messages, rationale = fields["messages"], fields["rationale"]
    return Example(
        **{
            **fields,
            "messages": None if messages is None else tuple(map(tuple, messages)),
            "rationale": None if rationale is None else tuple(map(tuple, rationale)),
        }
    )


def unpacked(text: str) -> tuple[str, Outcome]:
    """An example's id and outcome."""
    fields = json.loads(text)
    return fields["id"], Outcome(fields["record"], fields["error"])
