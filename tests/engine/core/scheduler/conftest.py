"""What the scheduler's tests share: models, a clock that passes advance, and a record of the passes."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk

ModelPath = Callable[[str], Path]
BROKEN = 258  # the token whose embedding the fixture `breaking` sets to NaN


@pytest.fixture(scope="module")
def load(model_path: ModelPath) -> Callable[..., Engine]:
    """A model by name and dtype, loaded once."""
    return cache(lambda name, dtype="float32": Engine.load(str(model_path(name)), dtype=dtype))


class Clock:
    """A simulated clock: a pass takes `pass_seconds`, and `token_seconds` for each of its tokens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pass_seconds, self.token_seconds = 1.0, 0.05

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Passes:
    """The chunks of every pass, with the name of the runner's method; the prompts of a decode step as a prefill."""

    recorded: list[tuple[str, list[SequenceChunk]]] = field(default_factory=list)

    def of(self, name: str) -> list[list[SequenceChunk]]:
        """The passes of one of the runner's methods."""
        return [chunks for method, chunks in self.recorded if method == name]

    def num_new(self, slot: KVSlot | None = None) -> int:
        """Tokens that were added to a slot, or to any slot."""
        new = [chunk for _, chunks in self.recorded for chunk in chunks if chunk.is_new]
        return sum(len(chunk.ids) for chunk in new if slot is None or chunk.slot is slot)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The scheduler's clock: the size of prefill chunks must not depend on the machine's speed."""
    clock = Clock()
    monkeypatch.setattr(scheduling, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Passes:
    """A record of every pass; each pass advances the clock."""
    passes = Passes()

    def record(name: str, method: Callable[..., Any]) -> None:
        def recorded(self: ModelRunner, chunks: Sequence[SequenceChunk], *args: Any) -> Any:
            prefill = list(args[0]) if name == "step" and args else []  # in the pass of a decode step
            if prefill:
                passes.recorded.append(("prefill", prefill))
            passes.recorded.append((name, list(chunks)))
            num_tokens = sum(len(chunk.ids) for chunk in (*prefill, *chunks))
            clock.now += clock.pass_seconds + clock.token_seconds * num_tokens
            return method(self, chunks, *args)

        monkeypatch.setattr(ModelRunner, name, recorded)

    for name in ("prefill", "step", "explained_pass"):
        record(name, getattr(ModelRunner, name))
    return passes


@pytest.fixture
def breaking() -> Iterator[Callable[[Engine], None]]:
    """Sets the embedding of the token BROKEN of a model to NaN, until the test ends."""
    hooks = []

    def poison(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_fill((args[0] == BROKEN)[..., None], torch.nan)

    def poison_embedding(engine: Engine) -> None:
        hooks.append(engine.model.runner.model.get_input_embeddings().register_forward_hook(poison))

    yield poison_embedding
    for hook in hooks:
        hook.remove()
