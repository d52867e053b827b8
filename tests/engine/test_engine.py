"""The engine: sizes of its KV cache and limits, requests of its iterators, ranks that take the smallest sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradellm_engine import (
    AttributionSettings,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    GradEllm,
    Metric,
    ModelLoadError,
    PromptInput,
    Sampling,
)
from gradellm_engine.core.lockstep import Command, RankZeroScheduler
from gradellm_engine.methods.cost_model import ModelCost
from gradellm_engine.model.loader import LoadedModel, load_model
from support.scheduler_harness import run_alone

COST = ModelCost((1.0, 2.0, 3.0), 4, 3, (0.1, 0.2), (0.3, 0.4))


@pytest.fixture(scope="module")
def model(model_path: Callable[[str], Path]) -> LoadedModel:
    """A model of this file's own, whose KV cache tests replace."""
    return load_model(str(model_path("llama")))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"threads": 0}, "threads is 0; at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; a completion needs at least 1"),
    ],
)
def test_sizes_are_refused_before_a_model_is_read(sizes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Engine.load(str(tmp_path / "is not there"), **sizes)


@pytest.mark.parametrize(
    ("kv_tokens", "max_new_tokens", "context", "prompt", "new"),
    [
        (50, 4096, 50, 49, 49),  # the KV cache is smaller than the model's context of 256
        (50, 20, 50, 49, 20),
        (1000, 4096, 256, 255, 255),
    ],
)
def test_limits_are_what_the_kv_cache_holds(
    model: LoadedModel, kv_tokens: int, max_new_tokens: int, context: int, prompt: int, new: int
) -> None:
    per_token = model.runner.bytes_per_token
    engine = Engine(model, kv_bytes=kv_tokens * per_token + per_token - 1, max_new_tokens=max_new_tokens)
    assert (engine.kv_tokens, engine.kv_bytes) == (kv_tokens, kv_tokens * per_token)
    assert model.runner.pool.num_tokens == kv_tokens
    assert (engine.context_tokens, engine.max_prompt_tokens, engine.max_new_tokens) == (context, prompt, new)
    assert engine.prompt_limits.tokens == prompt


def test_iterators_run_the_requests_of_their_siblings(engine: Engine) -> None:
    """`generate` and `generation_request`, and so on, take the same arguments to the same results."""
    explained, sampling = AttributionSettings(GradEllm(layers=2)), Sampling(max_new_tokens=4, temperature=1.5, seed=2)
    resumed = {"forced_ids": [70, 71], "first_attribution": 1}
    for iterate, requested, arguments, keywords in (
        (engine.generate, engine.generation_request, ("a fox", sampling, explained), {}),
        (engine.generate, engine.generation_request, ("a fox", sampling, explained), resumed),
        (engine.attribute, engine.attribution_request, ("a fox", "bc", explained), {"num_alternatives": 2}),
    ):
        engine.model.runner.allocate_pool(engine.kv_tokens)  # no cached prefix, whose keys may be rounded otherwise
        found = list(iterate(*arguments, **keywords))
        output = run_alone(engine, requested(*arguments, **keywords))
        assert found == [replace(step, attribution=a.attribution) for step, a in zip(output.steps, found, strict=True)]
        rows = [step.attribution.scores for step in found if step.attribution is not None]
        assert all(torch.equal(a, b) for a, b in zip(rows, output.rows, strict=True))
    settings = EvaluationSettings((EvaluatedMethod("it", GradEllm()),), (Metric.SOFT_NC,), stride=1)
    engine.model.runner.allocate_pool(engine.kv_tokens)
    items = [event for event in engine.evaluate("a fox", settings, [70, 71]) if isinstance(event, EvaluationItem)]
    output = run_alone(engine, engine.evaluation_request("a fox", settings, [70, 71]))
    assert items == [event for event in output.events if isinstance(event, EvaluationItem)]
    assert len(items) == 2
    engine.model.runner.allocate_pool(engine.kv_tokens)  # with its full size again


def test_a_tokenised_prompt_is_taken_as_it_is(engine: Engine) -> None:
    prompt = engine.tokenize(PromptInput(prompt="a fox"))
    assert engine.tokenize(prompt) is prompt
    assert engine.tokenize("a fox") == prompt
    assert engine.generation_request(prompt).ids == prompt.ids


def test_an_engine_on_one_process_has_no_followers(engine: Engine) -> None:
    engine.stop_followers()
    with pytest.raises(RuntimeError, match="only a rank other than 0"):
        engine.run_follower()


@dataclass
class Ranks:
    """A process group as rank `rank` sees it, whose other rank has `others` as its sizes."""

    rank: int
    others: Sequence[int]
    compared: list[Mapping[str, str]] = field(default_factory=list)
    sent: list[Command] = field(default_factory=list)
    size: int = 2
    is_ready: bool = False

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def all_reduce_min(self, numbers: Sequence[int]) -> list[int]:
        return [min(pair) for pair in zip(numbers, self.others, strict=True)]

    def assert_equal(self, named: Mapping[str, str]) -> None:
        self.compared.append(named)

    def broadcast_object(self, value: ModelCost) -> ModelCost:
        return value if self.is_rank0 else COST

    def use_pass_timeout(self) -> None:
        self.is_ready = True

    def broadcast(self, command: Command) -> None:
        self.sent.append(command)

    def recv(self) -> Command:
        return Command(is_last=True)


@pytest.fixture
def engine_of(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Ranks], Engine]:
    """The engine of one rank of a group, on a model that has all heads."""

    def make(ranks: Ranks) -> Engine:
        monkeypatch.setattr(model.runner, "ranks", ranks)
        return Engine(model, kv_bytes=100 * model.runner.bytes_per_token)

    return make


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_take_the_smallest_sizes(engine_of: Callable[[Ranks], Engine], model: LoadedModel, rank: int) -> None:
    per_token = model.runner.bytes_per_token
    ranks = Ranks(rank, others=[90 * per_token, 60])
    engine = engine_of(ranks)
    assert (engine.kv_tokens, engine.context_tokens) == (60, 60)
    assert model.runner.pool.num_tokens == 60
    assert engine.method_bytes == 30 * per_token // 2  # half of what the KV cache leaves of the smallest memory
    assert "a context of 60" in ranks.compared[0]["limits"]
    assert (engine.model_cost == COST) is (rank == 1)  # rank 0's measurements, on every rank
    assert ranks.is_ready
    assert isinstance(engine.scheduler, RankZeroScheduler) is (rank == 0)


def test_followers_run_until_rank_0_stops_them(engine_of: Callable[[Ranks], Engine]) -> None:
    first = Ranks(0, others=[2**40, 100])
    leader = engine_of(first)
    with pytest.raises(RuntimeError, match="only a rank other than 0"):
        leader.run_follower()
    leader.stop_followers()
    assert [command.is_last for command in first.sent] == [True]
    follower = engine_of(Ranks(1, others=[2**40, 100]))
    follower.run_follower()
    follower.stop_followers()  # nothing: it is not rank 0
