"""Two ranks that share a model, by gloo on this machine, against one that has it whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradellm_engine.model.families import FAMILIES
from support.oracle import relative_error
from support.rank_programs import PROGRAMS, load_engine, on_ranks
from support.tiny_models import save_random_model

EXACT = 1e-9  # in float64
ROUNDED = 1e-5  # in float32
STRETCHED = 3e-5  # the same, for methods that rescale similar cosines to 0..1
SHARED = sorted(name for name, family in FAMILIES.items() if family.supports_tensor_parallel)
EXPERTS = frozenset(
    name for name in SHARED if FAMILIES[name].gates is None
)  # torch groups their products in float32 alone


def differences(of_ranks: Any, alone: Any) -> list[float]:
    """Of all numbers and rows; all else must be equal."""
    if isinstance(of_ranks, Tensor):
        return [relative_error(of_ranks, alone.double())]
    if isinstance(of_ranks, float):
        return [abs(of_ranks - alone)]
    if isinstance(of_ranks, list | tuple):
        assert len(of_ranks) == len(alone)
        return [difference for pair in zip(of_ranks, alone, strict=True) for difference in differences(*pair)]
    assert of_ranks == alone
    return [0.0]


def check(path: Path, dtype: str, tolerance: float, programs: Sequence[str], tmp_path: Path) -> None:
    engine = load_engine(path, dtype)
    alone = [PROGRAMS[name](engine) for name in programs]
    for name, outcome, expected in zip(
        programs, on_ranks(path, dtype, programs, tmp_path / "made"), alone, strict=True
    ):
        assert max(differences(outcome, expected)) < tolerance, name


def test_two_ranks_equal_one_rank(model_path: Callable[[str], Path], tmp_path: Path) -> None:
    check(model_path("llama"), "float64", EXACT, list(PROGRAMS), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "llama"])
def test_in_float32_too(model_path: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    check(model_path(name), "float32", ROUNDED, ("default_method", "cancellation"), tmp_path)
    check(model_path(name), "float32", STRETCHED, ("in_pass_methods",), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*SHARED} - EXPERTS - {"llama"}))
def test_every_family_that_can_be_shared(model_path: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    check(model_path(family), "float64", EXACT, ("in_pass_methods", "post_hoc_methods"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(EXPERTS))
def test_experts_that_can_be_shared(model_path: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    check(model_path(family), "float32", STRETCHED, ("in_pass_methods", "cancellation"), tmp_path)


@pytest.mark.slow
def test_shares_that_are_computed_together(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    path = save_random_model(tmp_path, "llama", num_hidden_layers=2, **wide)
    check(path, "float32", ROUNDED, ("default_method",), tmp_path)
