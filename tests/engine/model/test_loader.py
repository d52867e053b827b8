"""Loading: configurations, the model's description and its hashes, and what tensor-parallel ranks compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    Engine,
    ModelLoadError,
    ProcessGroup,
    UnsupportedModelError,
)
from gradellm_engine.model.loader import load_model
from support.tiny_models import configure, load_error

ModelPath = Callable[[str], Path]


@pytest.mark.parametrize("model_type", ["falcon", "mamba", "bloom", "t5", "bert"])
def test_unsupported_families_are_refused_by_name(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}'.*Supported families: cohere"):
        Engine.load(str(folder))


@pytest.mark.parametrize("content", ['{"model_type": "made_up"}', '{"model_type": null}', "{}", "[]", '"llama"'])
def test_a_configuration_without_a_known_model_type(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    message = load_error(folder)
    assert str(folder) in message
    assert any(expected in message for expected in ("made_up", "None", "model_type", "no JSON object"))


@pytest.mark.parametrize("content", [b"", b'{"a":', b"\xff\xfe\x00"])
def test_a_configuration_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in load_error(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": "abc"}, "hidden_size"),
        ({"num_attention_heads": 0}, "model"),
        ({"dtype": "zzz"}, "zzz"),
        ({"hidden_act": "zzz"}, "zzz"),
        ({"num_hidden_layers": 5}, "18 weights are missing, among them model.layers.3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, and they hold layer 2"),
        ({"num_key_value_heads": 4}, "k_proj.weight with [32, 64] instead of [64, 64]"),
        ({"vocab_size": 200}, "lm_head.weight with [261, 64] instead of [200, 64]"),
    ],
)
def test_a_configuration_that_does_not_fit(folder: Path, changes: dict[str, Any], expected: str) -> None:
    configure(folder, **changes)
    assert expected in load_error(folder)


def test_an_end_of_text_that_is_not_a_token_id(folder: Path) -> None:
    configure(folder, "generation_config.json", eos_token_id="</s>")
    assert "generation_config.json" in load_error(folder)


def test_end_ids_come_from_generation_config_and_tokenizer(folder: Path) -> None:
    configure(folder, "generation_config.json", eos_token_id=[3, 5])
    assert Engine.load(str(folder)).model.end_ids == {3, 5, 257}


def test_model_info(model_path: ModelPath) -> None:
    stages: list[str] = []
    path = str(model_path("llama"))
    info = Engine.load(path, context_tokens=100, dtype="float64", progress=stages.append).info
    assert (info.name, info.revision, info.family, info.dtype) == (path, "", "llama", "float64")
    assert (info.num_layers, info.num_heads, info.num_key_value_heads, info.vocab_size) == (3, 4, 2, 261)
    assert info.context_tokens == 100
    assert info.has_chat_template
    plain = AutoModelForCausalLM.from_pretrained(path)
    assert info.num_parameters == sum(p.numel() for p in plain.parameters())
    assert len(stages) == 4


SAME: list[dict[str, Any]] = [
    {"_name_or_path": "/another/folder"}, {"transformers_version": "4.1"}, {"torch_dtype": "bfloat16"},
    {"dtype": "float16"}, {"use_cache": False},
]  # fmt: skip
OTHER: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"max_position_embeddings": 128}, {"eos_token_id": 3},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5000}}, {"attention_dropout": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("change", [*SAME, *OTHER], ids=str)
def test_the_configuration_hash_covers_settings_that_affect_results(
    folder: Path, engine: Engine, change: dict[str, Any]
) -> None:
    configure(folder, **change)
    info = Engine.load(str(folder)).info
    assert info.weights_sha256 == engine.info.weights_sha256
    assert (info.config_sha256 == engine.info.config_sha256) == (change in SAME)


def test_the_configuration_hash_covers_begin_and_end_tokens(folder: Path, engine: Engine) -> None:
    found = {engine.info.config_sha256}
    configure(folder, "generation_config.json", temperature=0.5, transformers_version="4.1")
    assert Engine.load(str(folder)).info.config_sha256 in found
    configure(folder, "generation_config.json", eos_token_id=[257, 3])
    found.add(Engine.load(str(folder)).info.config_sha256)
    configure(folder, "tokenizer_config.json", eos_token="<|user|>")
    found.add(Engine.load(str(folder)).info.config_sha256)
    configure(folder, "tokenizer_config.json", bos_token="<|user|>")
    found.add(Engine.load(str(folder)).info.config_sha256)
    assert len(found) == 4


class OtherRank:
    """Stands in for the ranks of a group: keeps what they compare, and ends the loading there."""

    size = 2

    def __init__(self) -> None:
        self.compared: dict[str, str] = {}

    def assert_equal(self, fingerprint: dict[str, str]) -> None:
        self.compared = fingerprint
        raise ModelLoadError("compared")


def test_ranks_compare_configurations_and_templates(folder: Path) -> None:
    def compared() -> dict[str, str]:
        rank = OtherRank()
        with pytest.raises(ModelLoadError, match="compared"):
            load_model(str(folder), ranks=cast("ProcessGroup", rank))
        return rank.compared

    before = compared()
    configure(folder, rms_norm_eps=1e-5)
    after = compared()
    assert {name for name in before if before[name] != after[name]} == {"configurations"}
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert {name for name, value in compared().items() if after[name] != value} == {"chat templates"}


def test_the_demo_model_has_a_name() -> None:
    assert Engine.load().info.name == "gradellm demo model"
