"""On a GPU: eager and CUDA-graph decode steps, explain chunks and prefill, against the same model on the CPU.

Skipped without a GPU.
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
from support.scheduler_harness import RequestOutput, run, scheduler_of
from support.tiny_models import save_random_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPTS = ("Once upon a time, there was a small red fox", "In a dark wood", "Far, far away. " * 10)
STEPS = 10
TOLERANCE = 1e-4  # between two float32 devices
Load = Callable[[str], Engine]


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads a family's random model on a device; the weights are large, so that tokens differ."""
    family = str(request.param)
    path = save_random_model(tmp_path_factory.mktemp(family), family, seed=1, initializer_range=0.15)
    return lambda device: Engine.load(str(path), device=device, dtype="float32", kv_bytes=2**22)


@pytest.fixture(scope="module")
def on_cpu(load: Load) -> Engine:
    return load("cpu")


@pytest.fixture(scope="module")
def on_gpu(load: Load) -> Engine:
    return load("cuda")


class ExecutionMode(Enum):
    """How decode steps run."""

    EAGER = auto()
    CUDA_GRAPHS = auto()
    COMPILED = auto()  # with CUDA graphs


def outputs_of(
    engine: Engine, settings: AttributionSettings | None, mode: ExecutionMode = ExecutionMode.EAGER
) -> list[RequestOutput]:
    """The outputs of all prompts, run together."""
    sampling = Sampling(max_new_tokens=STEPS, temperature=0.0)
    requests = [engine.generation_request(prompt, sampling, settings) for prompt in PROMPTS]
    scheduler = scheduler_of(engine, max_running=len(requests), num_tokens=1024)
    runner = engine.model.runner
    if mode is ExecutionMode.CUDA_GRAPHS:
        runner.use_graphs(CudaGraphCapturer(runner.device))
    if mode is ExecutionMode.COMPILED:
        runner.use_graphs()
    return run(scheduler, requests)


def settings_to_try(engine: Engine) -> list[AttributionSettings | None]:
    """No attribution, and some options of Grad-ELLM per token and in chunks."""
    methods = [
        GradEllm(),
        GradEllm(similarity=Similarity.COSINE, rectify=Rectify.TOTAL),
        GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE, magnitude=Magnitude.KNOCKOUT),
    ]
    if engine.model.family.rotary:
        methods.append(GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED))
    per_token = [AttributionSettings(method=method) for method in methods]
    chunked = [AttributionSettings(method=method, delivery=Delivery.CHUNKED, chunk_size=4) for method in methods]
    return [None, *per_token, *chunked]


def assert_same(on_gpu: Sequence[RequestOutput], on_cpu: Sequence[RequestOutput]) -> None:
    """Assert that both devices have the same tokens, and scores up to rounding."""
    for output, expected in zip(on_gpu, on_cpu, strict=True):
        assert output.error is None
        assert output.ids == expected.ids
        assert len(output.rows) == len(expected.rows)
        for row, reference in zip(output.rows, expected.rows, strict=True):
            assert relative_error(row, reference.double()) < TOLERANCE


def test_tokens_and_scores_are_those_of_a_cpu(on_cpu: Engine, on_gpu: Engine) -> None:
    for settings in settings_to_try(on_cpu):
        expected = outputs_of(on_cpu, settings)
        for mode in (ExecutionMode.EAGER, ExecutionMode.CUDA_GRAPHS):
            assert_same(outputs_of(on_gpu, settings, mode), expected)


DATA_DEPENDENT_ROUTING = frozenset({"gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"})


def test_decode_steps_of_dense_models_are_captured(on_gpu: Engine) -> None:
    (output, *_) = outputs_of(on_gpu, AttributionSettings(), ExecutionMode.CUDA_GRAPHS)
    cuda_graphs = on_gpu.model.runner.cuda_graphs
    assert output.error is None
    assert cuda_graphs is not None
    assert cuda_graphs.is_possible or on_gpu.info.family in DATA_DEPENDENT_ROUTING


COMPILED = ("llama", pytest.param("gemma2", marks=pytest.mark.slow))  # compiles for minutes


@pytest.mark.parametrize("family", COMPILED)
def test_compiled_layers(model_path: Callable[[str], Path], family: str) -> None:
    on_cpu, on_gpu = (
        Engine.load(str(model_path(family)), device=device, dtype="float32", kv_bytes=2**22)
        for device in ("cpu", "cuda")
    )
    for delivery in (None, Delivery.PER_TOKEN, Delivery.CHUNKED):
        settings = None if delivery is None else AttributionSettings(delivery=delivery)
        assert_same(outputs_of(on_gpu, settings, ExecutionMode.COMPILED), outputs_of(on_cpu, settings))
    assert on_gpu.model.runner.execution_mode == "fused attention kernels, compiled layers"
