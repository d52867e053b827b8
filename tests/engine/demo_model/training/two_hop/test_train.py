"""The two-hop model, trained from nothing: a trace finds the fact behind a name that the model wrote itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.demo_model.training.two_hop.measurement import SETTINGS, measure
from gradellm import Client
from gradellm_engine import Engine
from gradellm_engine.demo_model.training.two_hop import train as training
from gradellm_engine.demo_model.training.two_hop.task import TwoHopExample, two_hop_example
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

QUESTIONS = 100
ACCURACY = 0.8
"""Share of the held-out questions that the model must answer, for the figures to mean something."""


def test_seed_and_steps_determine_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_CHATS", 2)
    monkeypatch.setattr(training, "_TOKENIZER_TEXTS", 200)
    weights = []
    for run, seed in enumerate((0, 0, 1)):
        training.train_two_hop(tmp_path / str(run), seed, steps=2)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(run), dtype=torch.float32)
        weights.append(model.lm_head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert weights[0].shape != weights[2].shape or not torch.equal(weights[0], weights[2])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server with a newly trained model."""
    checkpoint = tmp_path_factory.mktemp("two_hop")
    training.train_two_hop(checkpoint)
    running = RunningServer(Engine.load(str(checkpoint), dtype="float32"), ServerSettings(listen="127.0.0.1:0"))
    with Client(running.address, retry=None) as client:
        yield client
    running.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)  # training takes a minute on two idle cores
@pytest.mark.parametrize("name", ["value_zeroing", "relevance"])
def test_a_trace_finds_the_fact_behind_the_generated_name(client: Client, name: str) -> None:
    outcome = measure(client, questions(), SETTINGS[name])
    print(f"{name}: {outcome}")
    assert outcome.answered >= ACCURACY * outcome.asked
    assert outcome.traced_hop >= 0.9 * outcome.answered
    assert outcome.traced_pair >= 0.9 * outcome.answered
    assert outcome.direct_pair <= 0.5 * outcome.answered


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("value_zeroing", "relevance")])
def test_grad_ellm_is_measured(client: Client, name: str) -> None:
    """Grad-ELLM's rows name the second fact in some questions, and their traces few hops: docs/guides/trace.md."""
    outcome = measure(client, questions(), SETTINGS[name])
    print(f"{name}: {outcome}")
    assert outcome.answered >= ACCURACY * outcome.asked
    assert outcome.unexplained < 0.01


def questions() -> list[TwoHopExample]:
    return [two_hop_example(Random(seed), "held_out") for seed in range(QUESTIONS)]
