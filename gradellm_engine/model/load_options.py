"""The settings that a model is loaded with: devices and dtypes by name, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import ModelLoadError, one_line
from gradellm_engine.layers.batch_invariant import DTYPES as INVARIANT_DTYPES
from gradellm_engine.layers.rotary_switch import context_limit
from gradellm_engine.model.families import Family
from gradellm_engine.model.quantization import Quantization

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(name: str) -> torch.device:
    """The device of a name; auto is a GPU if there is one.

    Raises:
        ModelLoadError: if it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"device {name!r} cannot be used: {one_line(error)}") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The dtype of a name of `DTYPES`; auto is float32 on a CPU, and left to Transformers ("auto") elsewhere.

    Raises:
        ModelLoadError: for another name.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def check_memory(memory_bytes: int, num_parameters: int, dtype: torch.dtype | str) -> None:
    """Refuse a limit of memory that the weights alone exceed, before they are read.

    Raises:
        ModelLoadError: with both sizes.
    """
    if not isinstance(dtype, torch.dtype):
        return
    needed = num_parameters * dtype.itemsize
    if memory_bytes < needed:
        raise ModelLoadError(
            f"memory of {memory_bytes:,} bytes is too small: the weights alone take {needed:,}; give more, or a "
            "smaller dtype"
        )


def check_placement(
    device: str, device_map: str | None, quantization: Quantization, ranks: ProcessGroup | None
) -> None:
    """Refuse settings of devices that contradict each other.

    Raises:
        ModelLoadError: naming them.
    """
    if device_map is not None and device != "auto":
        raise ModelLoadError(f"give either a device ({device}) or a device map ({device_map}), not both")
    if ranks is None:
        return
    if device_map is not None:
        raise ModelLoadError(f"every tensor-parallel rank has one device: give no device map ({device_map})")
    if device != "auto":
        raise ModelLoadError(f"tensor-parallel ranks have a GPU each, or none: leave device at auto, not {device!r}")
    if quantization is not Quantization.NONE:
        raise ModelLoadError(
            f"tensor parallelism does not shard weights in {quantization}: give no quantize, or a single rank"
        )


def check_batch_invariant(
    config: Any,  # noqa: ANN401 (Transformers' PretrainedConfig)
    family: Family,
    device: torch.device,
    dtype: torch.dtype | str,
    quantization: str,
    device_map: str | None,
    ranks: ProcessGroup | None,
) -> None:
    """Refuse settings and families that batch-invariant execution does not cover.

    Raises:
        ModelLoadError: naming the setting or family.
    """
    wrong = None
    if device.type != "cpu" or device_map is not None:
        wrong = f"not on {device_map or device}"
    elif ranks is not None:
        wrong = "not with tensor parallel"
    elif quantization != Quantization.NONE:
        wrong = f"not with weights in {quantization}"
    elif dtype not in INVARIANT_DTYPES:
        wrong = f"not in {str(dtype).removeprefix('torch.')}"
    if wrong is not None:
        raise ModelLoadError(
            f"batch-invariant results come from a CPU in float32 or float64, {wrong}: leave the switch off, or give "
            "--device cpu --dtype float32 without quantised or shared weights"
        )
    text = config.get_text_config(decoder=True)
    if not family.supports_batch_invariance or getattr(text, "final_logit_softcapping", None):
        raise ModelLoadError(
            f"the family {config.model_type} has no batch-invariant results: its experts take the tokens of all "
            "requests together, or logits are soft-capped outside of any layer; leave the switch off"
        )


def check_shares(config: Any, family: Family, size: int) -> None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Refuse a model that tensor parallelism cannot shard evenly.

    Raises:
        ModelLoadError: with the numbers of ranks that are possible.
    """
    text = config.get_text_config(decoder=True)
    if not family.supports_tensor_parallel:
        raise ModelLoadError(
            f"the family {config.model_type} cannot be sharded over ranks; use --device-map auto for a model larger "
            "than a GPU"
        )
    heads, groups = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % size or groups % size:
        possible = [number for number in range(2, groups + 1) if not (heads % number or groups % number)]
        hint = f"it can be sharded over {', '.join(map(str, possible))}" if possible else "it cannot be sharded"
        raise ModelLoadError(f"{heads} query heads and {groups} key-value heads do not divide by {size} ranks; {hint}")


def check_context_tokens(
    config: Any,  # noqa: ANN401 (Transformers' PretrainedConfig)
    context_tokens: int | None,
    progress: Callable[[str], None],
) -> None:
    """Refuse a context beyond the model's limit; report to `progress` a limit that its rotary frequencies set.

    Raises:
        ModelLoadError: with the limit.
    """
    limit = context_limit(config)
    reason = f": {limit.reason}" if limit.reason else ""
    if context_tokens is not None and not 2 <= context_tokens <= limit.num_tokens:
        raise ModelLoadError(
            f"a context of {context_tokens} tokens was requested; the model takes 2 to {limit.num_tokens}{reason}"
        )
    if reason:
        progress(f"limiting the context to {limit.num_tokens} tokens{reason}")
