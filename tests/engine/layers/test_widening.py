"""bfloat16 models whose activations are computed in float32."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gradellm_engine import AttributionSettings, Delivery, Engine, Sampling
from gradellm_engine.layers.linear import FrozenLinear
from gradellm_engine.layers.patches import undo_patches
from gradellm_engine.layers.widening import WidenedEmbedding, widen_activations
from support.scheduler_harness import PROMPT, run, scheduler_of

pytest.importorskip("numba")

FORCED = 4
KEPT = ["model.safetensors", "config.json"]
FAMILIES = ["llama", "mistral", "gemma3_text", "qwen2", "olmo2"]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 20, bias=False)
    return nn.Sequential(*layers).requires_grad_(False).bfloat16()


def test_only_matrices_stay_in_bfloat16() -> None:
    model, ids = small_model(), torch.tensor([[3, 7, 19]])
    expected = copy.deepcopy(model).double()(ids)
    patches = widen_activations(model, is_exact=True)
    assert {p.dtype for p in model.parameters() if p.dim() > 1} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.dim() == 1} == {torch.float32}
    output = model(ids)
    assert output.dtype is torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-6, atol=1e-6)  # nothing is rounded to bfloat16
    before = {name: type(module) for name, module in small_model().named_modules()}
    assert isinstance(model[0], WidenedEmbedding)
    assert isinstance(model[3], FrozenLinear)
    undo_patches(patches)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


class Experts(nn.Module):
    """A matrix that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.bfloat16), requires_grad=False)


@pytest.mark.parametrize(
    "model",
    [
        small_model().float(),
        small_model().half(),
        nn.Sequential(*small_model(), Experts()),
        nn.Sequential(*small_model(), nn.Linear(2, 2, dtype=torch.float32)),
    ],
    ids=["float32", "float16", "experts", "two dtypes"],
)
def test_other_models_stay_as_they_are(model: nn.Module) -> None:
    before = {name: type(module) for name, module in model.named_modules()}
    assert widen_activations(model) == []
    assert {name: type(module) for name, module in model.named_modules()} == before


@given(rows=st.integers(1, 40), has_bias=st.booleans())
def test_products_with_and_without_packed_weights(rows: int, *, has_bias: bool) -> None:
    """Inputs are rounded to bfloat16, packed on some processors only, except where products are to be exact."""
    torch.manual_seed(rows)
    layer = nn.Linear(40, 70, bias=has_bias).requires_grad_(False).bfloat16()
    exact = copy.deepcopy(layer).double()
    model = nn.Sequential(nn.Embedding(2, 40).requires_grad_(False).bfloat16(), layer)
    widen_activations(model)
    assert isinstance(layer, FrozenLinear)
    weight = layer.gemm_weight
    for rounding, weight.is_exact in ((1e-6, True), (1e-2, False), (1e-2, False)):
        x = torch.randn(1, rows, 40, requires_grad=True)
        y = layer(x)
        gradient = torch.randn_like(y)
        (by_x,) = torch.autograd.grad(y, x, gradient)
        expected = exact(x.detach().double())
        assert y.dtype is by_x.dtype is torch.float32
        assert (y.double() - expected).abs().max() <= rounding * expected.abs().max()
        expected = gradient.double() @ exact.weight
        assert (by_x.double() - expected).abs().max() <= rounding * expected.abs().max()
        if not weight.is_exact:
            weight.pack()
            weight.pack_transposed()


def explained(engine: Engine, settings: AttributionSettings) -> list[tuple[list[int], list[Tensor]]]:
    """Tokens and scores of two requests with some forced tokens, and generated ones after them."""
    scheduler = scheduler_of(engine, max_running=2, num_tokens=900)
    engine.model.runner.use_graphs()
    requests = [
        engine.generation_request(
            text,
            Sampling(max_new_tokens=FORCED + 5),
            settings,
            forced_ids=list(range(5, 5 + FORCED)),
            first_attribution=0,
        )
        for text in (PROMPT, PROMPT[3:] + "x")
    ]
    return [(output.ids, output.rows) for output in run(scheduler, requests)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("delivery", [Delivery.PER_TOKEN, Delivery.CHUNKED])
def test_scores_are_those_of_float32(
    model_path: Callable[[str], Path], tmp_path: Path, family: str, delivery: Delivery
) -> None:
    """Of the same weights, rounded to bfloat16 before; nearly, where products round their inputs."""
    path = model_path(family)
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float().save_pretrained(tmp_path)
    shutil.copytree(path, tmp_path, dirs_exist_ok=True, ignore=lambda _, names: {n for n in names if n in KEPT})
    settings = AttributionSettings(delivery=delivery)
    in_float32, in_bfloat16 = (
        Engine.load(str(tmp_path), dtype=dtype, device="cpu", kv_bytes=2**22) for dtype in ("float32", "bfloat16")
    )
    expected = explained(in_float32, settings)
    for rounding in (0.2, 1e-4):
        for (ids, rows), (expected_ids, expected_rows) in zip(explained(in_bfloat16, settings), expected, strict=True):
            same = [i for i in range(len(ids)) if ids[: i + 1] == expected_ids[: i + 1]]
            assert len(same) >= FORCED
            for i in same:
                assert rows[i].dtype is torch.float32
                assert (rows[i] - expected_rows[i]).norm() <= rounding * expected_rows[i].norm()
        for layer in in_bfloat16.model.runner.model.modules():
            if isinstance(layer, FrozenLinear):
                for weight in {layer.gemm_weight, layer.multiplied}:
                    weight.unpack()
                    weight.is_exact = True


def test_a_widened_model_runs_by_kernels_and_graphs(model_path: Callable[[str], Path]) -> None:
    runner = Engine.load(str(model_path("llama")), dtype="bfloat16", device="cpu", kv_bytes=2**20).model.runner
    assert {shape.dtype for shape in runner.layer_shapes} == {torch.float32}
    assert runner.launch_graphs is not None
    assert runner.launch_graphs.is_possible
