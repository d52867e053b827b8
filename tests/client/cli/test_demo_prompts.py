"""The demo model's answers to the prompts of the demo."""

from __future__ import annotations

import pytest

from gradellm.cli.demo_prompts import SCENES
from gradellm_engine import Engine, Message, PromptInput, Sampling, Step


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load()


@pytest.mark.parametrize(
    ("number", "answer"), [(0, "Positive"), (1, "false"), (2, "Because she wanted to surprise her old neighbour.")]
)
def test_the_demo_model_answers_correctly(engine: Engine, number: int, answer: str) -> None:
    scene = SCENES[number]
    prompt = PromptInput(messages=tuple(Message(role, text) for role, text in scene.messages))
    steps = [event for event in engine.generate(prompt, Sampling(scene.max_new_tokens)) if isinstance(event, Step)]
    assert "".join(step.text for step in steps) == answer
    assert len(steps) < scene.max_new_tokens  # it ends by itself
