"""Paths that hold no supported model: the message names what they hold and what to do, from file names and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradellm_engine import Engine, ModelLoadError
from gradellm_engine.model.checkpoint_check import check_checkpoint, config_sha256

ModelPath = Callable[[str], Path]
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "ORGANISATION/BASE"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def error_of(path: Path | str) -> str:
    """The error of both the check and the engine, which is one line."""
    with pytest.raises(ModelLoadError) as checking:
        check_checkpoint(str(path))
    with pytest.raises(ModelLoadError) as loading:
        Engine.load(str(path))
    message = str(checking.value)
    assert str(loading.value) == message
    assert "\n" not in message
    return message


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("name", ["demo", "llama", "gpt2", "stories260K"])
def test_checkpoints_pass(model_path: ModelPath, name: str) -> None:
    check_checkpoint(str(model_path(name)))


@pytest.mark.parametrize("name", ["ORGANISATION/NAME", "gpt2", "a.b/c-d_e.1"])
def test_hub_ids_pass(name: str) -> None:
    check_checkpoint(name)


WITHOUT_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({}, "is empty"),
    ({"notes.txt": "x"}, "it has no config.json"),
    (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": b"x"},
        "an adapter for ORGANISATION/BASE.*merge_and_unload",
    ),
    ({"adapter_model.bin": b"x"}, "an adapter.*merge"),
    ({"model-Q4_K_M.gguf": b"GGUF"}, "model-Q4_K_M.gguf is a GGUF file; GGUF is not supported yet.*convert"),
    ({"pytorch_model.bin": b"x"}, "pytorch_model.bin is.*save_pretrained"),
    ({"consolidated.00.pth": b"x", "params.json": {}}, "Meta's own format"),
    ({"consolidated.safetensors": b"x", "params.json": {}}, "Mistral's own format"),
    ({"model.onnx": b"x"}, "ONNX model, which has no gradients"),
    ({"onnx/model.onnx": b"x"}, "ONNX model"),
    ({"weights.npz": b"x"}, "MLX weights"),
    ({"tf_model.h5": b"x"}, "TensorFlow weights"),
    ({"flax_model.msgpack": b"x"}, "Flax weights"),
    (
        {"refs/main": "x", "snapshots/0a1b/config.json": {}},
        "it has no config.json, but .*snapshots/0a1b has one; give that",
    ),
    (
        {"checkpoint-500/config.json": {}, "log.txt": ""},
        "it has no config.json, but .*checkpoint-500 has one; give that",
    ),
    ({"model_index.json": {}, "unet/model.safetensors": b"x"}, "a diffusion pipeline"),
]


@pytest.mark.parametrize(("files", "expected"), WITHOUT_CONFIG, ids=lambda value: " ".join(value) or "empty")
def test_a_folder_without_a_model(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    write(tmp_path, files)
    message = error_of(tmp_path)
    assert str(tmp_path) in message
    assert_contains(message, expected)


def assert_contains(message: str, expected: str) -> None:
    """The parts of `expected`, separated by .*, in their order."""
    position = 0
    for fragment in expected.split(".*"):
        position = message.find(fragment, position)
        assert position >= 0, message


CHANGED: list[tuple[dict[str, Any], str]] = [
    (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": b"x"},
        "an adapter (adapter_config.json, adapter_model.safetensors) and a full model.*merge.*remove",
    ),
    ({"adapter_config.json": ADAPTER}, "and a full model"),
    ({"adapter_model.bin": b"x"}, "and a full model"),
    ({"model.safetensors": None}, "has no model.safetensors"),
    ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "no model.safetensors.*pickled PyTorch.*save_pretrained"),
    ({"model.safetensors": None, "model.gguf": b"GGUF"}, "no model.safetensors.*GGUF is not supported yet"),
    ({"model.safetensors": None, "onnx/model.onnx": b"x"}, "no model.safetensors.*ONNX"),
    ({"model.safetensors": None, "mine.safetensors": b"x"}, "mine.safetensors is not what Transformers looks for"),
    ({"model.safetensors": POINTER}, "model.safetensors is a Git LFS pointer.*git lfs pull"),
    ({"tokenizer.json": POINTER}, "tokenizer.json is a Git LFS pointer"),
    ({"config.json": POINTER}, "config.json is a Git LFS pointer"),
    ({"tokenizer.json": None}, "holds no tokenizer: none of tokenizer.json.*copy"),
    ({"config.json": {}}, "no model_type"),
    ({"config.json": {"model_type": "llava", "vision_config": {}}}, "a model of text with vision (llava)"),
    ({"config.json": {"model_type": "ultravox", "audio_config": {}}}, "text with audio"),
    ({"config.json": {"model_type": "t5", "is_encoder_decoder": True}}, "an encoder-decoder model (t5)"),
    ({"config.json": {"model_type": "bert"}}, "'bert' is not supported"),
    (
        {"config.json": {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}},
        "LlamaForSequenceClassification, a classifier, which generates no text; serve a checkpoint of LlamaForCausalLM",
    ),
    ({"config.json": {"model_type": "qwen3", "architectures": ["Qwen3Model"]}}, "without a language-model head"),
    (
        {"config.json": {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}}},
        "quantised for MLX",
    ),
]


@pytest.mark.parametrize(("files", "expected"), CHANGED, ids=lambda value: " ".join(value))
def test_a_folder_with_something_else(folder: Path, files: dict[str, Any], expected: str) -> None:
    write(folder, files)
    message = error_of(folder)
    assert str(folder) in message
    assert_contains(message, expected)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "model"
    assert_contains(error_of(missing), f"there is no folder '{missing}' ({tmp_path} exists).*ORGANISATION/NAME")
    assert "there is no folder" in error_of("~/nowhere")
    assert "there is no folder" in error_of("./nowhere")
    assert "there is no folder" in error_of("a/b/c")
    assert "there is no folder" in error_of("nowhere.gguf")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert_contains(error_of(link), f"{link} is a symbolic link to {tmp_path / 'gone'}, which does not exist")
    assert "not a path to a model" in error_of("x" * 5000)
    assert "not a path to a model" in error_of("a\0b")


def test_a_file(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert_contains(error_of(folder / name), f"{folder / name} is a file.*give {folder}")
    for file in (tmp_path / "model.gguf", tmp_path / "no-suffix"):
        file.write_bytes(b"GGUF\3")
        assert_contains(error_of(file), f"{file} is a GGUF file; GGUF is not supported yet")
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_bytes(b"x")
    assert_contains(error_of(adapter), "part of an adapter.*merge")


def test_files_without_read_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, which may read everything."""

    def refuse(*arguments: object, **keywords: object) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(ModelLoadError, match="cannot be read: Permission denied"):
            check_checkpoint(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(ModelLoadError, match=r"config\.json cannot be read: Permission denied"):
            check_checkpoint(str(folder))


def test_the_hash_is_over_a_canonical_form() -> None:
    config = {"model_type": "llama", "rope_theta": 10000.0, "text_config": {"model_type": "x", "dtype": "float32"}}
    same = {"dtype": "bfloat16", "text_config": {"model_type": "x"}, "rope_theta": 10000, "model_type": "llama"}
    assert config_sha256(config, {}) == config_sha256(same, {})
    packed = {"quantization_config": {"dtype": "int4"}}
    assert config_sha256(packed, {}) != config_sha256({"quantization_config": {"dtype": "int8"}}, {})
    assert config_sha256(config, {"end": "</s>"}) != config_sha256(config, {"end": "<|end|>"})
    assert config_sha256({"eos_token_id": True}, {}) != config_sha256({"eos_token_id": 1}, {})


def test_the_check_imports_no_torch() -> None:
    program = (
        "import sys; from gradellm_engine.model.checkpoint_check import check_checkpoint; import gradellm_engine\n"
        "try: check_checkpoint('./nowhere')\n"
        "except gradellm_engine.ModelLoadError: print([n for n in ('torch', 'transformers') if n in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_every_public_name_exists() -> None:
    import gradellm_engine

    assert dir(gradellm_engine) == sorted(gradellm_engine.__all__)
    for name in gradellm_engine.__all__:
        assert getattr(gradellm_engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Enginne'"):
        _ = gradellm_engine.Enginne  # type: ignore[attr-defined]
