"""A real model reasons in two steps, and the trace names the facts of both."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradellm import Client, Explanation

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

MODELS = (("qwen", "bfloat16"), ("smollm2", "float32"))
"""Folders of models by preference, with the dtype in which they are loaded."""
PLACES = {"Anna": "Lima", "Tom": "Cairo", "Nora": "Oslo"}
COLOURS = {"Lima": "red", "Cairo": "blue", "Oslo": "green"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    folder = Path(os.environ.get("GRADELLM_REAL_MODELS", ""))
    found = [(folder / name, dtype) for name, dtype in MODELS if (folder / name / "config.json").exists()]
    if not found:
        pytest.skip("GRADELLM_REAL_MODELS names no folder with qwen/ or smollm2/ in it")
    path, dtype = found[0]
    with Client.local(model=str(path), dtype=dtype, device="cpu") as client:
        yield client


def answered(client: Client, person: str) -> Explanation:
    """The answer in two steps, with each fact as a segment of its own text."""
    facts = [f"{name} works in {place}." for name, place in PLACES.items()]
    facts += [f"The office in {place} is {colour}." for place, colour in COLOURS.items()]
    text = " ".join(facts)
    question = (
        f"{text}\n\nWhat colour is the office that {person} works in? First say where {person} works, then say the "
        "colour. Answer in two short sentences."
    )
    return client.explain(
        messages=[{"role": "user", "content": question}],
        segments={fact: (0, text.index(fact), text.index(fact) + len(fact)) for fact in facts},
        attribution="knockout",
        sink="exclude",
        sources="prefix",
        max_new_tokens=36,
    )


@pytest.mark.parametrize("person", PLACES)
def test_a_trace_names_the_facts_of_both_steps(client: Client, person: str) -> None:
    explanation = answered(client, person)
    place, colour = PLACES[person], COLOURS[PLACES[person]]
    for selection in (None, explanation.words[-1]):
        whole = explanation.trace(selection)
        assert math.fsum((*(part.share for part in whole.parts), whole.unexplained)) == pytest.approx(1, abs=1e-9)
    if colour not in explanation.text or place not in explanation.text.split(colour)[0]:
        pytest.skip(f"the model does not answer in two steps: {explanation.text!r}")
    trace = explanation.trace(colour, by="segment")
    print(f"\n{trace}")
    shares = {part.label: part.share for part in trace.parts if part.label}
    assert max((fact for fact in shares if " works " in fact), key=shares.__getitem__) == f"{person} works in {place}."
    assert max(shares, key=shares.__getitem__) == f"The office in {place} is {colour}."
    assert max(trace.words, key=lambda word: word.share).word.text.rstrip(".") == place
