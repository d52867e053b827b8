"""Options of loading that contradict each other or the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradellm_engine import ModelLoadError, ProcessGroup, Quantization
from gradellm_engine.model.families import family_of
from gradellm_engine.model.load_options import check_placement, check_shares
from support.tiny_models import load_error

ModelPath = Callable[[str], Path]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is not one of auto, float64, float32"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"device": ""}, "device ''"),
        ({"device_map": "zzz"}, "zzz"),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"context_tokens": 1}, "2 to 256"),
        ({"context_tokens": 257}, "2 to 256"),
        ({"threads": 0}, "at least 1 thread"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_invalid_options(folder: Path, arguments: dict[str, Any], expected: str) -> None:
    assert expected in load_error(folder, **arguments)


def test_options_are_checked_before_the_weights_are_read(folder: Path) -> None:
    """Hashing and loading a large model takes minutes."""
    (folder / "model.safetensors").write_bytes(b"")
    for arguments in ({"dtype": "float8"}, {"context_tokens": 1}, {"max_new_tokens": 0}):
        assert "model.safetensors" not in load_error(folder, **arguments)


@pytest.mark.parametrize(
    ("device", "device_map", "quantization", "message"),
    [
        ("auto", "balanced", Quantization.NONE, "give no device map"),
        ("cuda:1", None, Quantization.NONE, "leave device at auto"),
        ("auto", None, Quantization.INT8, "give no quantize"),
    ],
)
def test_settings_that_tensor_parallelism_refuses(
    device: str, device_map: str | None, quantization: Quantization, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        check_placement(device, device_map, quantization, cast("ProcessGroup", object()))


@pytest.mark.parametrize(
    ("family", "heads", "groups", "size", "message"),
    [
        ("llama", 8, 2, 3, "8 query heads and 2 key-value heads do not divide by 3 ranks; it can be sharded over 2"),
        ("llama", 8, 1, 2, "it cannot be sharded"),
        ("gpt2", 8, 8, 2, "the family gpt2 cannot be sharded over ranks; use --device-map auto"),
    ],
)
def test_models_that_cannot_be_shared(family: str, heads: int, groups: int, size: int, message: str) -> None:
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=groups)
    config = SimpleNamespace(model_type=family, get_text_config=lambda decoder: text)
    with pytest.raises(ModelLoadError, match=message):
        check_shares(config, family_of(family), size)
