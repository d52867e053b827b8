"""Random schemas: few are refused, each with the keyword and its place; answers end, and validate."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engine.structured.random_schemas import draw_schemas
from gradellm_engine import (
    Engine,
    FinishReason,
    InvalidRequestError,
    Message,
    PromptInput,
    Request,
    Sampling,
    StructuredOutput,
)
from support.scheduler_harness import RequestOutput, run, scheduler_of

SAMPLING = Sampling(max_new_tokens=400, temperature=0.7, seed=1)
SHORT = Sampling(max_new_tokens=48, temperature=0.7, seed=1)  # the demo model writes stories, and numbers without end
RUNNING = 16


def prompt(engine: Engine, schema: Any) -> PromptInput:
    """A question for a short value, with as much of the schema as the context has room for."""
    text = json.dumps(schema)[: engine.context_tokens // 5]
    question = f"Reply with one very short JSON value that matches this JSON schema: {text}"
    return PromptInput(messages=(Message("user", question),))


@dataclass
class Outcome:
    """What became of schemas.

    Attributes:
        refused: the errors of schemas that were refused.
        reasons: how many answers ended for which reason.
        invalid: answers that ended and do not validate, with their schemas.
    """

    refused: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    invalid: list[tuple[str, str]] = field(default_factory=list)

    def add(self, schema: Any, output: RequestOutput) -> None:
        if output.error is not None or output.finished is None:
            self.reasons[f"error: {output.error}"] += 1
            return
        self.reasons[output.finished.reason] += 1
        if output.finished.reason is FinishReason.END_OF_TEXT:
            try:
                jsonschema.validate(json.loads(output.finished.text), schema, jsonschema.Draft202012Validator)
            except ValueError as error:
                self.invalid.append((json.dumps(schema), f"{output.finished.text}: {error}"))
            except jsonschema.ValidationError as error:
                self.invalid.append((json.dumps(schema), f"{output.finished.text}: {error.message}"))


def outcome_of(engine: Engine, schemas: list[Any], sampling: Sampling) -> Outcome:
    """Generate an answer to each schema, up to RUNNING at a time."""
    outcome = Outcome()
    waiting: list[tuple[Any, Request]] = []
    for schema in schemas:
        try:
            settings = StructuredOutput(json_schema=json.dumps(schema))
            waiting.append(
                (schema, engine.generation_request(prompt(engine, schema), sampling, structured_output=settings))
            )
        except InvalidRequestError as error:
            outcome.refused.append(str(error))
    num_tokens = RUNNING * max(request.max_num_tokens for _, request in waiting)
    scheduler = scheduler_of(engine, max_running=RUNNING, num_tokens=num_tokens)
    for (schema, _), output in zip(waiting, run(scheduler, [request for _, request in waiting]), strict=True):
        outcome.add(schema, output)
    return outcome


def check(outcome: Outcome, count: int, finished_share: float) -> None:
    assert outcome.invalid == []
    assert len(outcome.refused) <= 0.05 * count, outcome.refused
    for error in outcome.refused:
        assert "structured_output.json_schema: " in error
        assert " at #" in error, error
    assert not [reason for reason in outcome.reasons if reason.startswith("error")], outcome.reasons
    finished = outcome.reasons[FinishReason.END_OF_TEXT]
    assert finished >= finished_share * (count - len(outcome.refused)), outcome.reasons


@pytest.fixture(scope="module")
def demo(model_path: Any) -> Engine:
    return Engine.load(str(model_path("demo")))


def test_a_few_random_schemas(demo: Engine) -> None:
    check(outcome_of(demo, draw_schemas(24), SHORT), 24, finished_share=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_random_schemas(demo: Engine) -> None:
    check(outcome_of(demo, draw_schemas(500), SHORT), 500, finished_share=0)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(10800)
def test_five_hundred_random_schemas_on_a_real_model() -> None:
    folder = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / "qwen"  # SmolLM2 ends three answers in four
    if not (folder / "config.json").is_file():
        pytest.skip("GRADELLM_REAL_MODELS has no qwen")
    engine = Engine.load(str(folder), dtype="bfloat16")
    check(outcome_of(engine, draw_schemas(500), SAMPLING), 500, finished_share=0.9)
