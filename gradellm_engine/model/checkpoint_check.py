"""Checks of a checkpoint by its file names and JSON files alone.

Nothing here imports torch, so that `gradellm serve` reports within a second that a path is no model, and what it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from gradellm_engine.errors import ModelLoadError, UnsupportedModelError, one_line
from gradellm_engine.model.families import family_of

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Files from which Transformers can build a fast tokenizer.
TOKENIZER_FILES = (TOKENIZER, "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")

MERGE = (
    "adapters are not supported yet: merge it into its base model (peft: PeftModel.merge_and_unload(), then "
    "save_pretrained()) and serve the merged folder"
)
GGUF = (
    "GGUF is not supported yet: serve the original checkpoint, or convert it with Transformers "
    "(AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(...), and its tokenizer)"
)
RESAVE = "load it with Transformers and save it with save_pretrained(), which writes safetensors"
_OTHER_FORMATS: tuple[tuple[str, str], ...] = (
    ("*.gguf", f"a GGUF file; {GGUF}"),
    ("pytorch_model*.bin", f"weights as pickled PyTorch objects, which can run code; {RESAVE}"),
    ("consolidated*.pth", "Meta's own format; serve the checkpoint in Hugging Face's format"),
    ("consolidated*.safetensors", "Mistral's own format; serve the checkpoint in Hugging Face's format"),
    ("*.onnx", "an ONNX model, which has no gradients; serve the checkpoint that it was exported from"),
    ("onnx/*.onnx", "an ONNX model, which has no gradients; serve the checkpoint that it was exported from"),
    ("openvino_model.*", "an OpenVINO model, which has no gradients; serve the checkpoint that it was exported from"),
    ("*.engine", "a TensorRT engine, which has no gradients; serve the checkpoint that it was built from"),
    ("*.npz", "MLX weights; serve the checkpoint that they were converted from"),
    ("weights*.safetensors", "MLX weights; serve the checkpoint that they were converted from"),
    ("tf_model.h5", f"TensorFlow weights; {RESAVE}"),
    ("*.msgpack", f"Flax weights; {RESAVE}"),
    ("*.ckpt", f"a training checkpoint; {RESAVE}"),
    ("*.pt", f"weights as pickled PyTorch objects, which can run code; {RESAVE}"),
    ("*.pth", f"weights as pickled PyTorch objects, which can run code; {RESAVE}"),
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LFS = b"version https://git-lfs"
# By the end of a model class's name: what the model is instead of a text generator.
_OTHER_TASKS = {
    "SequenceClassification": "a classifier",
    "TokenClassification": "a token classifier",
    "QuestionAnswering": "an extractive question answerer",
    "MultipleChoice": "a multiple-choice model",
    "RewardModel": "a reward model",
    "MaskedLM": "an encoder with masked tokens",
    "PreTraining": "a model with pre-training heads",
    "Model": "a model without a language-model head",
}
# Keys of config.json that do not affect numbers or tokens: the model's origin, the software that saved it, and the
# dtype, which is a field of ModelInfo.
_NO_ARITHMETIC = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache")


def check_checkpoint(name: str) -> None:
    """Check that a local path is a folder with a decoder in safetensors and its tokenizer.

    A hub id passes unchecked: its files are not here.

    Raises:
        ModelLoadError: with what the path is instead, and what to do.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    path = Path(name)
    try:
        if "\0" in name:
            raise ValueError("it contains a zero byte")
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name!r} is not a path to a model: {one_line(error)}") from error
    if not exists:
        _check_hub_id(name)
    elif not path.is_dir():
        _refuse_file(path)
    else:
        _check_folder(path)


def _check_hub_id(name: str) -> None:
    """Accept a name of the form of a hub id; refuse one that can only be a path.

    Raises:
        ModelLoadError: with what to give instead.
    """
    if _HUB_ID.fullmatch(name) and not name.endswith((".gguf", ".safetensors", ".bin", ".onnx")):
        return
    path = Path(name)
    if path.is_symlink():
        raise ModelLoadError(f"{name} is a symbolic link to {os.readlink(path)}, which does not exist")
    if name.startswith("~"):
        hint = f"the shell expands ~ only where it is not quoted: {path.expanduser()}"
    else:
        nearest = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
        hint = f"{nearest} exists" if nearest != Path("/") else "no folder above it exists either"
    raise ModelLoadError(
        f"there is no folder {name!r} ({hint}), and it is not a hub id (ORGANISATION/NAME); give the folder with "
        "config.json, tokenizer.json and *.safetensors"
    )


def _refuse_file(path: Path) -> None:
    if path.suffix == ".gguf" or _begins_with(path, b"GGUF"):
        raise ModelLoadError(f"{path} is a GGUF file; {GGUF}")
    if path.name in ADAPTER_FILES:
        raise ModelLoadError(f"{path} is part of an adapter (such as LoRA); {MERGE}")
    if (path.parent / CONFIG).is_file() and path.name != CONFIG:
        raise ModelLoadError(f"{path} is a file; a model is a folder: give {path.parent}")
    raise ModelLoadError(
        f"{path} is a file; a model is a folder with config.json, tokenizer.json and *.safetensors: give "
        f"{path.parent if path.name == CONFIG else 'that'}"
    )


def _check_folder(folder: Path) -> None:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelLoadError(
            f"{folder} cannot be read: {error.strerror}; the server needs read permission for the folder and its files"
        ) from error
    if CONFIG not in names:
        raise ModelLoadError(f"{folder} holds no model: {_instead(folder, names)}")
    config = read_json(folder / CONFIG)
    if adapter := [name for name in ADAPTER_FILES if name in names]:
        raise ModelLoadError(
            f"{folder} holds an adapter ({', '.join(adapter)}) and a full model; it is unclear which of the two is "
            f"meant; {MERGE}, or remove {' and '.join(adapter)} to serve the model without it"
        )
    check_config(str(folder), config)
    _check_weights(folder, names)
    _check_tokenizer(folder)


def _instead(folder: Path, names: list[str]) -> str:
    """What a folder without config.json is, and what to give instead."""
    if any(name in names for name in ADAPTER_FILES):
        base = ""
        if "adapter_config.json" in names:
            base_model = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
            base = f" for {base_model}" if isinstance(base_model, str) and base_model else ""
        return f"it is an adapter{base} (such as LoRA), without its base model; {MERGE}"
    if other := _other_format(folder):
        return other
    if not names:
        return f"it is empty; give the folder with {CONFIG}, {TOKENIZER} and *.safetensors"
    below = [name for name in names if (folder / name / CONFIG).is_file()]
    below += [str(found.parent.relative_to(folder)) for found in sorted(folder.glob(f"snapshots/*/{CONFIG}"))]
    if below:
        return f"it has no {CONFIG}, but {folder / below[0]} has one; give that folder"
    if "model_index.json" in names:
        return "it is a diffusion pipeline (model_index.json), which generates no text"
    return f"it has no {CONFIG}, which describes the weights; copy it from the original model"


def _other_format(folder: Path) -> str | None:
    """What a folder holds instead of model.safetensors; None if no known format."""
    for pattern, what in _OTHER_FORMATS:
        if found := sorted(folder.glob(pattern)):
            return f"{found[0].relative_to(folder)} is {what}"
    return None


def check_config(name: str, config: dict[str, Any]) -> None:
    """Refuse a configuration of anything but a decoder that generates text from text.

    Raises:
        ModelLoadError: for a configuration without a model type.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    model_type, quantization = config.get("model_type"), config.get("quantization")
    if not isinstance(model_type, str):
        if "model_type" in config or not config.get("architectures"):
            raise ModelLoadError(f"{name}: config.json has no model_type (such as llama or qwen3): {model_type!r}")
        return  # Transformers may recognise it by its architecture
    modalities = [kind for kind in ("vision", "audio", "image", "speech") if f"{kind}_config" in config]
    if modalities:
        raise UnsupportedModelError(
            f"{name} is a model of text with {' and '.join(modalities)} ({model_type}); only text-only decoders are "
            "supported: serve the text model that it was built from"
        )
    if config.get("is_encoder_decoder") is True:
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model ({model_type}); only decoder-only models are supported"
        )
    try:
        family_of(model_type)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name}: {error}") from error
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(first, str) and not first.endswith(("CausalLM", "LMHeadModel")):
        for task, what in _OTHER_TASKS.items():
            if first.endswith(task):
                raise UnsupportedModelError(
                    f"{name}: config.json says {first}, {what}, which generates no text; serve a checkpoint of "
                    f"{first.removesuffix(task).removesuffix('For')}ForCausalLM"
                )
    if isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys():
        raise UnsupportedModelError(
            f"{name}: its weights are quantised for MLX (config.json: quantization), which is not supported; serve the "
            "original checkpoint, with --quantize int8 or nf4 to save memory"
        )


def check_context(name: str, tokens: int) -> None:
    """Refuse a context of fewer than 2 tokens, or above the limit in a local path's config.json.

    Raises:
        ModelLoadError: with the limit.
    """
    file = Path(name) / CONFIG
    config = read_json(file) if file.is_file() else {}
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    most = next((number for number in limits if isinstance(number, int) and number > 0), None)
    if tokens < 2 or (most is not None and tokens > most):
        raise ModelLoadError(
            f"a context of {tokens} tokens was requested; the model takes 2 to {most if most else 'its own limit'}"
        )


def _check_weights(folder: Path, names: list[str]) -> None:
    if WEIGHTS not in names and INDEX not in names:
        other = _other_format(folder)
        found = [name for name in names if name.endswith(".safetensors")]
        if other is None and found:
            other = f"{', '.join(found[:3])} is not what Transformers looks for; name it {WEIGHTS}, or write {INDEX}"
        raise ModelLoadError(
            f"{folder} has no {WEIGHTS}; weights in other formats are not loaded" + (f": {other}" if other else "")
        )
    for name in names:
        if name.endswith(".safetensors") and _begins_with(folder / name, _LFS):
            raise ModelLoadError(_lfs_pointer(folder / name))


def _check_tokenizer(folder: Path) -> None:
    if not any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern)):
        raise ModelLoadError(
            f"{folder} holds no tokenizer: none of {', '.join(TOKENIZER_FILES)}; copy {TOKENIZER} and "
            "tokenizer_config.json from the model that it was made from"
        )
    if (folder / TOKENIZER).is_file() and _begins_with(folder / TOKENIZER, _LFS):
        raise ModelLoadError(_lfs_pointer(folder / TOKENIZER))


def _begins_with(path: Path, prefix: bytes) -> bool:
    """Whether a file begins with these bytes.

    Raises:
        ModelLoadError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(prefix)) == prefix
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


def _lfs_pointer(path: Path) -> str:
    return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: if the file cannot be read, or holds no JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    if content.startswith(_LFS):
        raise ModelLoadError(_lfs_pointer(path))
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is no JSON: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise ModelLoadError(f"{path} holds no JSON object, but {type(parsed).__name__}")
    return parsed


def config_sha256(config: dict[str, Any], ends: dict[str, Any]) -> str:
    """A hash of the settings that affect numbers and tokens, without weights, tokenizer and chat template.

    It is taken over config.json as stored, so that it does not depend on the version of Transformers, in canonical
    form: keys sorted, 10000.0 as 10000, without names, versions and the stored dtype.

    Args:
        config: config.json.
        ends: the tokens that begin and end a text, from generation_config.json and the tokenizer.
    """
    canonical = json.dumps({"config": _arithmetic(config), "ends": _arithmetic(ends)}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _arithmetic(value: Any, *, is_model: bool = True) -> Any:  # noqa: ANN401 (JSON)
    """A part of a configuration without the keys that do not affect numbers."""
    if isinstance(value, dict):
        # The dtype of a quantization_config affects numbers; that of a model is a field of ModelInfo.
        is_model = is_model or "model_type" in value
        return {
            key: _arithmetic(item, is_model=False)
            for key, item in value.items()
            if not (is_model and key in _NO_ARITHMETIC)
        }
    if isinstance(value, list):
        return [_arithmetic(item, is_model=False) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
