"""On a GPU: recorded steps, steps call by call, chunks and prompts, against the same model on the CPU.

Skipped where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path

import pytest
import torch

from gradellm_engine import AttributionSettings, Delivery, Engine, GradEllm, Sampling
from gradellm_engine.compilation.cuda_graphs import CudaGraphCapturer
from gradellm_engine.model.families import FAMILIES
from gradellm_engine.params import Loosening, Magnitude, Rectify, Rotary, Similarity
from support.oracle import relative_error
from support.scheduler_harness import Told, run, scheduler_of
from support.tiny_models import save_random_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPTS = ("Once upon a time, there was a small red fox", "In a dark wood", "Far, far away. " * 10)
STEPS = 10
TOLERANCE = 1e-4  # of one float32 against another
Load = Callable[[str], Engine]


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A family's model with weights so large that tokens differ, on a device."""
    family = str(request.param)
    path = save_random_model(tmp_path_factory.mktemp(family), family, seed=1, initializer_range=0.15)
    return lambda device: Engine.load(str(path), device=device, dtype="float32", kv_bytes=2**22)


@pytest.fixture(scope="module")
def on_cpu(load: Load) -> Engine:
    return load("cpu")


@pytest.fixture(scope="module")
def on_gpu(load: Load) -> Engine:
    return load("cuda")


class How(Enum):
    """How steps run."""

    CALL_BY_CALL = auto()
    RECORDED = auto()
    COMPILED = auto()  # and recorded


def told(engine: Engine, settings: AttributionSettings | None, how: How = How.CALL_BY_CALL) -> list[Told]:
    """All prompts together."""
    sampling = Sampling(max_new_tokens=STEPS, temperature=0.0)
    streams = [engine.generation_request(prompt, sampling, settings) for prompt in PROMPTS]
    scheduler = scheduler_of(engine, max_running=len(streams), num_tokens=1024)
    runner = engine.model.runner
    if how is How.RECORDED:
        runner.use_graphs(CudaGraphCapturer(runner.device))
    if how is How.COMPILED:
        runner.use_graphs()
    return run(scheduler, streams)


def ways(engine: Engine) -> list[AttributionSettings | None]:
    """Plain, at once and in chunks, for some of the switches."""
    methods = [
        GradEllm(),
        GradEllm(similarity=Similarity.COSINE, rectify=Rectify.TOTAL),
        GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE, magnitude=Magnitude.KNOCKOUT),
    ]
    if engine.model.family.rotary:
        methods.append(GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED))
    at_once = [AttributionSettings(method=method) for method in methods]
    in_chunks = [AttributionSettings(method=method, delivery=Delivery.CHUNKED, chunk_size=4) for method in methods]
    return [None, *at_once, *in_chunks]


def check(on_gpu: Sequence[Told], on_cpu: Sequence[Told]) -> None:
    """They told the same."""
    for its, other in zip(on_gpu, on_cpu, strict=True):
        assert its.error is None
        assert its.ids == other.ids
        assert len(its.rows) == len(other.rows)
        for row, reference in zip(its.rows, other.rows, strict=True):
            assert relative_error(row, reference.double()) < TOLERANCE


def test_tokens_and_scores_are_those_of_a_cpu(on_cpu: Engine, on_gpu: Engine) -> None:
    for settings in ways(on_cpu):
        expected = told(on_cpu, settings)
        for how in (How.CALL_BY_CALL, How.RECORDED):
            check(told(on_gpu, settings, how), expected)


DATA_DEPENDENT = frozenset({"gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"})


def test_dense_models_steps_are_recorded(on_gpu: Engine) -> None:
    (its, *_) = told(on_gpu, AttributionSettings(), How.RECORDED)
    cuda_graphs = on_gpu.model.runner.cuda_graphs
    assert its.error is None
    assert cuda_graphs is not None
    assert cuda_graphs.is_possible or on_gpu.info.family in DATA_DEPENDENT


COMPILED = ("llama", pytest.param("gemma2", marks=pytest.mark.slow))  # it takes long


@pytest.mark.parametrize("family", COMPILED)
def test_compiled_layers(model_path: Callable[[str], Path], family: str) -> None:
    on_cpu, on_gpu = (
        Engine.load(str(model_path(family)), device=device, dtype="float32", kv_bytes=2**22)
        for device in ("cpu", "cuda")
    )
    for delivery in (None, Delivery.PER_TOKEN, Delivery.CHUNKED):
        settings = None if delivery is None else AttributionSettings(delivery=delivery)
        check(told(on_gpu, settings, How.COMPILED), told(on_cpu, settings))
    assert on_gpu.model.runner.execution_mode == "fused attention kernels, compiled layers"
