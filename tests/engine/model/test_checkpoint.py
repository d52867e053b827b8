"""Checkpoints: damaged, missing or contradicting files are refused by name; hashes tell what differs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradellm_engine import (
    AttributionSettings,
    Engine,
    Sampling,
)
from support.tiny_models import (
    INDEX,
    SHARDS,
    WEIGHT,
    byte_tokenizer,
    change_weights,
    configure,
    load_error,
    save_random_model,
    shard,
)

ModelPath = Callable[[str], Path]
GREEDY = Sampling(max_new_tokens=4)


def test_a_configuration_of_a_far_larger_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))  # 20 billion parameters, by default
    assert re.search(
        r"config.json describes 2\d(,\d{3}){3} parameters, the weight files hold [\d,]+:", load_error(folder)
    )


def test_no_weights_in_safetensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert f"{folder} has no model.safetensors" in load_error(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "other formats are not loaded" in load_error(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b"x" * 5000, lambda b: b[:30]])
def test_a_damaged_weight_file(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert f"{file} is corrupt or cut off" in load_error(folder)


def test_a_missing_weight_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(WEIGHT))
    assert f"1 weights are missing, among them {WEIGHT}" in load_error(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 3)}))
    assert f"{WEIGHT} with [3, 3] instead of [96, 64]" in load_error(folder)


def add_layers(tensors: dict[str, Tensor]) -> None:
    """Three layers more than the configuration has."""
    tensors |= {
        re.sub(r"layers\.(\d)", lambda found: f"layers.{int(found[1]) + 3}", name): tensor.clone()
        for name, tensor in tensors.items()
        if ".layers." in name
    }


UNEXPECTED: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (
        lambda tensors: tensors.update(
            {f"model.layers.0.self_attn.{name}_proj.bias": torch.ones(1) for name in ("q", "k", "v")}
        ),
        "3 weights that config.json does not describe, among them model.layers.0.self_attn.k_proj.bias.*"
        "attention_bias is false",
    ),
    (lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.bias": torch.ones(96)}), "mlp_bias is false"),
    (add_layers, "27 weights that.*num_hidden_layers is 3, and they hold layer 5"),
    (lambda tensors: tensors.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(16)}), "q_norm.weight"),
    (lambda tensors: tensors.update({"score.weight": torch.ones(2, 64)}), "score.weight"),
    (lambda tensors: tensors.update({"lm_head.bias": torch.ones(261)}), "lm_head.bias"),
    (lambda tensors: tensors.update({"vision_tower.patch.weight": torch.ones(4, 4)}), "vision_tower.patch.weight"),
]


@pytest.mark.parametrize(("change", "expected"), UNEXPECTED)
def test_weights_that_the_configuration_does_not_describe(
    folder: Path, change: Callable[[dict[str, Tensor]], object], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change_weights(folder, change)
    assert re.search(expected, load_error(folder))
    assert "UNEXPECTED" not in capfd.readouterr().err  # Transformers' own table of it


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "phi3"])
def test_fewer_layers_than_the_weights_have_in_any_family(model_path: ModelPath, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(model_path(family), tmp_path / "model"))
    configure(folder, "config.json", **{"n_layer" if family == "gpt2" else "num_hidden_layers": 2})
    assert "num_hidden_layers is 2, and they hold layer 2" in load_error(folder)


def test_more_experts_than_the_configuration_has(model_path: ModelPath, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path("mixtral"), tmp_path / "model"))
    configure(folder, num_local_experts=3)
    assert "weights" in load_error(folder)


def test_an_untied_head_where_the_configuration_ties_it(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    assert "a language-model head that is not the embedding" in load_error(folder)


HARMLESS: list[tuple[str, dict[str, Any], dict[str, Tensor]]] = [
    ("llama", {}, {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(3)}),
    ("llama", {"tie_word_embeddings": True}, {}),  # and a copy of the embedding as its head
    ("gpt_neox", {}, {f"gpt_neox.layers.{n}.attention.masked_bias": torch.tensor(-1e9) for n in range(3)}),
    ("gpt2", {}, {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(3)}),
    ("gpt2", {}, {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8) for n in range(3)}),
]


@pytest.mark.parametrize(("family", "settings", "buffers"), HARMLESS)
def test_buffers_of_old_checkpoints_are_ignored(
    tmp_path: Path, family: str, settings: dict[str, Any], buffers: dict[str, Tensor]
) -> None:
    folder = save_random_model(tmp_path / "model", family, **settings)
    tensors = load_file(folder / "model.safetensors")
    if settings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    assert Engine.load(str(folder)).info.family == family


def test_two_sets_of_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(content)
    message = load_error(folder)
    assert "two sets of weights" in message
    assert SHARDS[0] in message
    (folder / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: "model.safetensors"}}))  # some write one anyway
    for file in SHARDS:
        (folder / file).unlink()
    assert Engine.load(str(folder)).info.num_layers == 3


def test_a_sharded_checkpoint_is_the_same_model(folder: Path, engine: Engine) -> None:
    shard(folder)
    loaded = Engine.load(str(folder))
    ids, expected = (
        [step.id for step in each.generate("abc", GREEDY, AttributionSettings())] for each in (loaded, engine)
    )
    assert ids == expected
    assert loaded.info.num_parameters == engine.info.num_parameters


def test_a_missing_or_damaged_shard(folder: Path) -> None:
    shard(folder)
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[0]).read_bytes()[:-9])
    assert str(folder / SHARDS[0]) in load_error(folder)
    (folder / SHARDS[1]).unlink()
    message = load_error(folder)
    assert SHARDS[1] in message
    assert INDEX in message


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}', "\x00"],
)
def test_a_damaged_index(folder: Path, content: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(content)
    assert INDEX in load_error(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_no_tokenizer(folder: Path, file: str, content: str | None) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert f"{folder} holds no tokenizer" in load_error(folder)


def test_hashes_differ_where_files_differ(folder: Path, engine: Engine, tmp_path: Path) -> None:
    info = engine.info
    copied = Engine.load(str(folder)).info  # another folder, the same files
    hashes = ("weights_sha256", "tokenizer_sha256", "chat_template_sha256", "config_sha256")
    assert [getattr(copied, name) for name in hashes] == [getattr(info, name) for name in hashes]
    assert all(re.fullmatch("[0-9a-f]{64}", getattr(info, name)) for name in hashes)

    other = Engine.load(str(save_random_model(tmp_path / "other", seed=1))).info
    assert other.weights_sha256 != info.weights_sha256
    assert other.tokenizer_sha256 == info.tokenizer_sha256

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_tokens(["fox"])
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    tokenizer.save_pretrained(folder)
    changed = Engine.load(str(folder)).info
    assert changed.weights_sha256 == info.weights_sha256
    assert changed.tokenizer_sha256 != info.tokenizer_sha256
    assert changed.chat_template_sha256 == ""
    assert not changed.has_chat_template
