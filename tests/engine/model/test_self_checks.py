"""Checks that run on the loaded model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradellm_engine import UnsupportedModelError
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.model.self_checks import check_logits, eager_logits, runner_logits, succeeds
from support.tiny_models import WEIGHT, change_weights, load_error

ModelPath = Callable[[str], Path]


def test_a_dtype_that_an_operation_of_the_family_does_not_support(model_path: ModelPath) -> None:
    """The router of gpt_oss multiplies tensors of two dtypes in float16."""
    message = load_error(model_path("gpt_oss"), dtype="float16", device="cpu")
    assert message.startswith("the family gpt_oss cannot be computed in float16 on cpu: ")
    assert message.endswith("choose another --dtype, such as float32 or bfloat16")


def test_weights_that_are_not_finite(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors[WEIGHT].fill_(torch.nan))
    assert "not finite" in load_error(folder)


@pytest.fixture
def model(model_path: ModelPath) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path("llama"), dtype=torch.float32)


def test_logits_of_a_runner_are_those_of_eager_attention(model: Any) -> None:
    expected = eager_logits(model)
    assert expected.shape == (1, model.config.vocab_size)
    actual = runner_logits(ModelRunner(model), model)
    check_logits(model, actual, expected)
    assert torch.allclose(actual, expected, atol=1e-5)


def test_logits_that_differ_are_refused(model: Any) -> None:
    expected = eager_logits(model)
    with pytest.raises(UnsupportedModelError, match=r"eager attention by 0\.01 \(relative; the limit in float32 is"):
        check_logits(model, expected * 1.01, expected)
    check_logits(model, expected * (1 + 1e-4), expected)


def test_an_error_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise NotImplementedError("no compiler\nis here " + 500 * "x")

    assert succeeds(lambda: None, "unused")
    assert not caplog.records
    assert not succeeds(fails, "Running without")
    (record,) = caplog.records
    assert record.getMessage().startswith("Running without: NotImplementedError: no compiler is here xxx")
    assert len(record.getMessage()) < 300
