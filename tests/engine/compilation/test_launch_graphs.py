"""Recorded steps repeat what a step computes, for other inputs, with scores and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradellm_engine import AttributionSettings, Delivery, Engine, GradEllm, Sampling
from gradellm_engine.compilation.launch_graphs import Arena, LaunchCapturer, LaunchGraph
from gradellm_engine.compilation.tracer import NotTraceable
from gradellm_engine.cpu_kernels.team import _recorder
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.batched import LinearOutputs
from support.scheduler_harness import PROMPT, run, scheduler_of

pytest.importorskip("numba")
from gradellm_engine.cpu_kernels import elementwise, gemm

WEIGHT = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
PACKED = gemm.pack(WEIGHT)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 24, generator=torch.Generator().manual_seed(1))


def layer(x: Tensor) -> Tensor:
    """Kernels as operators, operators of torch among them, sums, views and operators in place."""
    y = gemm.packed_linear(x, PACKED, 32, None)
    gated = elementwise.silu_mul_op(y[:, :16], y[:, 16:])
    doubled = gated.repeat(1, 2)
    doubled.mul_(2.0)
    return (y + doubled).view(-1).relu()


def test_a_replay_computes_for_other_inputs(x: Tensor) -> None:
    results: list[Tensor] = []
    replay = LaunchCapturer().capture(lambda: results.append(layer(x)))
    for _ in range(3):
        x.normal_()
        replay()
        assert torch.equal(results[0], layer(x))


def test_operators_that_give_a_view_or_a_copy_are_repeated_where_they_copy(x: Tensor) -> None:
    results: list[Tensor] = []

    def run() -> None:
        results[:] = x.t().contiguous(), x.t().reshape(-1), x.contiguous(), x.reshape(-1), *torch.split(x.t(), 8)

    replay = LaunchCapturer().capture(run)
    x.normal_()
    replay()
    expected = x.t().contiguous(), x.t().reshape(-1), x, x.view(-1), *torch.split(x.t(), 8)
    assert all(map(torch.equal, results, expected))


def test_launches_that_follow_each_other_are_one_call(x: Tensor) -> None:
    scale, times = torch.ones(24), 4

    def launches() -> None:
        y = x.relu()
        for _ in range(times):
            y = elementwise.rms_norm_op(y + x, scale, 1e-5)

    replay = LaunchCapturer().capture(launches)
    assert replay.__self__.num_calls == 2  # type: ignore[attr-defined]


def test_memory_of_a_graph_is_not_given_back(x: Tensor) -> None:
    results: list[Tensor] = []

    def chain() -> None:
        y = x
        for _ in range(20):
            y = elementwise.rms_norm_op(y + x, torch.ones(24), 1e-5)
        results.append(y)

    replay = LaunchCapturer().capture(chain)
    others = [torch.full((3, 24), torch.nan) for _ in range(100)]
    expected = results[0].clone()
    replay()
    assert torch.equal(results[0], expected)
    assert all(other.isnan().all() for other in others)


def test_an_arena_hands_out_memory_in_order_and_again() -> None:
    arena = Arena(chunk_bytes=1024)
    sizes = [100, 1, 0, 300, 2000, 5]
    first = [arena.empty((size,), torch.float32) for size in sizes]
    for i, tensor in enumerate(first):
        tensor.fill_(i)
    assert [tensor.tolist() for tensor in first] == [[i] * size for i, size in enumerate(sizes)]
    num_bytes = arena.num_bytes
    arena.rewind()
    again = [arena.empty((size,), torch.float32) for size in sizes]
    assert [tensor.data_ptr() for tensor in again] == [tensor.data_ptr() for tensor in first]
    assert arena.num_bytes == num_bytes


def test_steps_share_memory(x: Tensor) -> None:
    capturer, results = LaunchCapturer(), list[Tensor]()
    replays = []
    for _ in range(3):
        capturer.begin()
        replays.append(capturer.capture(lambda: results.append(elementwise.silu_mul_op(x, x))))
    assert len({result.data_ptr() for result in results}) == 1
    for replay in replays:
        results[0].zero_()
        replay()
        assert torch.equal(results[0], elementwise.silu_mul(x, x))


@pytest.mark.parametrize(
    "call",
    [lambda x: x[x > 0], lambda x: float(x.sum()), lambda x: torch.rand_like(x)],
    ids=["shape", "number", "random"],
)
def test_what_depends_on_data_is_not_captured(x: Tensor, call: Callable[[Tensor], object]) -> None:
    def run() -> None:
        call(x)

    with pytest.raises(NotTraceable, match=r"data|random"):
        LaunchCapturer().capture(run)
    assert _recorder.record is None


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), dtype="float32", device="cpu")


@pytest.fixture
def runner(engine: Engine) -> ModelRunner:
    return engine.model.runner


SETTINGS = [
    None,
    AttributionSettings(),
    AttributionSettings(method=GradEllm.preset("knockout")),
    AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=3),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "paper", "knockout", "chunked"])
@pytest.mark.parametrize("count", [1, 3])
def test_requests_get_the_same_numbers(
    engine: Engine, runner: ModelRunner, settings: AttributionSettings | None, count: int
) -> None:
    """With graphs and without; several requests, which end one after the other.

    Up to rounding: a runner without graphs replays tokens by torch's attention, with those of a prompt's pass among
    them.
    """

    def outputs() -> list[tuple[list[int], list[Tensor]]]:
        requests = [
            engine.generation_request(PROMPT + "x" * i, Sampling(max_new_tokens=8 + i), settings) for i in range(count)
        ]
        return [(output.ids, output.rows) for output in run(scheduler, requests)]

    is_chunked = settings is not None and settings.delivery is Delivery.CHUNKED
    scheduler = scheduler_of(engine, max_running=4, num_tokens=900)
    runner.pool.reuses_prefixes = False
    assert runner.launch_graphs is None
    expected = outputs()
    runner.use_graphs()
    assert runner.launch_graphs is not None
    for _ in range(2):
        for (ids, rows), (expected_ids, expected_rows) in zip(outputs(), expected, strict=True):
            assert ids == expected_ids
            assert len(rows) == len(expected_rows) == (len(ids) if settings else 0)
            for actual, expected_row in zip(rows, expected_rows, strict=True):
                torch.testing.assert_close(actual, expected_row, rtol=0, atol=1e-5 * float(expected_row.max()))
    assert runner.launch_graphs.is_possible
    kinds = {(shape.is_new, shape.linear_outputs) for shape in runner.launch_graphs.shapes}
    stored, loaded = (True, LinearOutputs.STORED), (False, LinearOutputs.LOADED)
    assert ({stored, loaded} if is_chunked else {(True, LinearOutputs.COMPUTED)}) <= kinds
    assert runner.activation_cache.num_tokens == 0


def test_replays_load_what_steps_stored(engine: Engine, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=4)
    results = []
    for max_tokens in (0, 100):
        cache = ActivationCache(runner.model.base_model, max_tokens)
        monkeypatch.setattr(runner, "activation_cache", cache)
        scheduler = scheduler_of(engine, max_running=3, num_tokens=900)
        runner.pool.reuses_prefixes = False
        runner.use_graphs()
        assert runner.launch_graphs is not None
        for _ in range(3):
            requests = [
                engine.generation_request(PROMPT + "x" * i, Sampling(max_new_tokens=8), settings) for i in range(3)
            ]
            outputs = run(scheduler, requests)
        results.append([row for output in outputs for row in output.rows])
        replays = {shape.linear_outputs for shape in runner.launch_graphs.shapes if not shape.is_new}
        assert (LinearOutputs.LOADED in replays) == (max_tokens > 0)
    assert len(results[0]) == 24
    for cached, computed in zip(*results, strict=True):
        torch.testing.assert_close(cached, computed, rtol=0, atol=1e-5 * float(computed.max()))


@pytest.mark.parametrize("fault", ["differs", "raises"])
def test_graphs_that_do_not_repeat_the_step_are_not_used(
    engine: Engine, runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def replay(self: LaunchGraph) -> None:
        if fault == "raises":
            raise ValueError("no kernel")

    scheduler = scheduler_of(engine, max_running=1, num_tokens=400)
    expected = run(scheduler, [engine.generation_request(PROMPT, Sampling(max_new_tokens=4))])[0].ids
    monkeypatch.setattr(LaunchGraph, "replay", replay)
    runner.use_graphs()
    assert runner.launch_graphs is not None
    assert not runner.launch_graphs.is_possible
    assert runner.cpu_traces is not None
    assert runner.cpu_traces.is_possible
    assert run(scheduler, [engine.generation_request(PROMPT, Sampling(max_new_tokens=4))])[0].ids == expected


def test_a_new_pool_drops_graphs(engine: Engine, runner: ModelRunner) -> None:
    scheduler_of(engine, max_running=1, num_tokens=100)
    runner.use_graphs()
    assert runner.launch_graphs is not None
    runner.allocate_pool(100)
    assert runner.launch_graphs is None
