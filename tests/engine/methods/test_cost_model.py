"""Estimates of memory and time against what methods take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gradellm_engine import AttributionSettings, Engine, InvalidRequestError, PromptInput, Switches
from gradellm_engine.methods.cost_model import check_memory, estimate, fit_line, measure_graph_bytes
from gradellm_engine.methods.registry import METHODS
from support.methods.reference_case import quick


@pytest.fixture(scope="module")
def load(model_path: Callable[[str], Path]) -> Callable[[str], Engine]:
    return cache(lambda name: Engine.load(str(model_path(name))))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "deepseek_v3"])
def test_the_size_of_a_graph_is_predicted_from_short_ones(load: Callable[[str], Engine], family: str) -> None:
    engine = load(family)
    for length in (50, 120):
        constant, linear, square = engine.model_cost.graph_bytes
        predicted = constant + linear * length + square * length**2
        assert predicted == pytest.approx(measure_graph_bytes(engine.model.runner, length), rel=0.05)


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The peak of bytes in tensors that are created under it."""

    def __init__(self, *before: torch.Tensor) -> None:
        """Views of tensors that existed `before` are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def release(_: Any) -> None:
            self.now -= nbytes
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, release)
        self.now += nbytes
        self.most = max(self.most, self.now)


def peak(engine: Engine, switches: Switches, m: int, n: int) -> int:
    """Peak bytes of explaining n tokens after a prompt of m."""
    prompt_input = PromptInput(prompt_ids=tuple(65 + i % 26 for i in range(m)))
    work = engine.attribute(prompt_input, [70 + i % 26 for i in range(n)], AttributionSettings(method=switches))
    runner = engine.model.runner
    pool = runner.pool
    parameters = [parameter for _, parameter in runner.named_parameters()]
    watching = Peak(*parameters, *pool.keys, *pool.values, *pool.cosines, *pool.sines)
    with watching:
        for _ in work:
            pass
    return watching.most


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.explain is not None])
def test_no_method_takes_more_than_its_estimate(load: Callable[[str], Engine], name: str) -> None:
    engine, switches = load("llama"), quick(name, steps=4, samples=6)
    estimated = engine.estimate(switches, 120, 8).bytes
    # One sequence a pass; other tensors of a request (embeddings, scores, masks) take some hundred kilobytes here.
    engine.post_hoc.memory_bytes, before = estimated, engine.post_hoc.memory_bytes
    try:
        assert peak(engine, switches, 120, 8) <= 1.1 * estimated + 2**19
    finally:
        engine.post_hoc.memory_bytes = before


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "lime", "value_zeroing", "attention_rollout"])
def test_memory_does_not_grow_with_steps_times_prompt(load: Callable[[str], Engine], name: str) -> None:
    """Eight times the steps after four times the prompt: only the result grows with their product."""
    engine, switches = load("llama"), quick(name, steps=4, samples=6)
    engine.post_hoc.memory_bytes, before = 1, engine.post_hoc.memory_bytes  # one sequence a pass, few steps a turn
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gradellm_engine.core.post_hoc_runner.check_memory", lambda *args: None)
            base, steps, prompt, both = (
                peak(engine, switches, m, n) for m, n in ((40, 4), (40, 32), (160, 4), (160, 32))
            )
    finally:
        engine.post_hoc.memory_bytes = before
    result = 160 * 32 * 4
    assert both - prompt <= 2 * (steps - base) + 8 * result + 0.5 * prompt


def test_a_refusal_names_the_longest_prompt_that_fits(load: Callable[[str], Engine]) -> None:
    engine, method, switches = load("llama"), METHODS["saliency"], METHODS["saliency"].switches()
    memory = estimate(method, switches, engine.model_cost, 77, 5).bytes
    check_memory(method, switches, engine.model_cost, 77, 5, 5, memory)
    with pytest.raises(InvalidRequestError, match="a prompt of up to 77 tokens fits"):
        check_memory(method, switches, engine.model_cost, 200, 5, 5, memory)
    with pytest.raises(InvalidRequestError, match="give a shorter completion"):
        check_memory(method, switches, engine.model_cost, 200, 5, 5, 1)


def test_seconds_grow_with_passes_and_tokens(load: Callable[[str], Engine]) -> None:
    engine, cost = load("llama"), load("llama").model_cost
    found = engine.estimate(METHODS["saliency"].switches(), 100, 10)
    assert (found.forward_passes, found.backward_passes) == (1, 10)
    (a, b), (c, d) = cost.forward_seconds, cost.backward_seconds
    assert found.seconds == pytest.approx(a + 110 * b + 10 * (c + 110 * d))
    assert min(a, b, c, d) >= 0
    assert engine.estimate(METHODS["grad_ellm"].switches(), 100, 10).seconds < found.seconds


def test_noise_in_times_gives_no_negative_costs() -> None:
    assert fit_line(8, 1.0, 32, 2.0) == pytest.approx((2 / 3, 1 / 24))
    assert fit_line(8, 3.0, 32, 2.0) == (2.0, 0.0)
    assert fit_line(8, 1.0, 32, 8.0) == (0.0, 7 / 24)
