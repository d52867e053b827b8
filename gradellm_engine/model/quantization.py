"""Weights in 8 or 4 bits, by libraries that Transformers integrates.

Only weights are quantised; activations keep the model's dtype. Products with weights therefore stay linear, gradients
by activations are exact, and explanations are exactly those of the quantised model. How far its scores lie from those
of the original model is a property of the two models.
"""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gradellm_engine.errors import ModelLoadError, UnsupportedModelError


class Quantization(StrEnum):
    """How weights are stored."""

    NONE = "none"
    INT8 = "int8"  # torchao: a scale a row
    NF4 = "nf4"  # bitsandbytes: 16 levels of a normal distribution, a scale for 64 weights


_PACKAGES = {Quantization.INT8: "torchao", Quantization.NF4: "bitsandbytes"}


def quantization_config(quantization: Quantization, dtype: torch.dtype | str) -> Any:  # noqa: ANN401 (Transformers')
    """The configuration with which Transformers quantises weights as it loads them; None for no quantization.

    Raises:
        ModelLoadError: if the library for it is not installed.
    """
    if quantization is Quantization.NONE:
        return None
    package = _PACKAGES[quantization]
    if importlib.util.find_spec(package) is None:
        raise ModelLoadError(f"weights in {quantization} need {package}: pip install 'gradellm[quant]'")
    if quantization is Quantization.INT8:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    from transformers import BitsAndBytesConfig

    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def check_gradients(model: PreTrainedModel) -> None:
    """Check that gradients pass through every quantised layer.

    Raises:
        UnsupportedModelError: naming a layer whose output has no graph: scores would miss the gradients below it.
    """
    for name, module in model.named_modules():
        # On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights for a kernel without a backward pass.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter:
            weight = module.weight
            x = torch.zeros(1, module.in_features, device=weight.device, dtype=model.dtype, requires_grad=True)
            with torch.enable_grad():
                if not module(x).requires_grad:
                    raise UnsupportedModelError(f"no gradient passes through the quantised layer {name}")
