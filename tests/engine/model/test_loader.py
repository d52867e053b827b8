"""Loading: what is whole loads the same everywhere, and what is not is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    ModelLoadError,
    ProcessGroup,
    Sampling,
    Step,
    UnsupportedModelError,
)
from gradellm_engine.model.families import FAMILIES, REFUSED, family_of
from gradellm_engine.model.loader import load_model
from support.tiny_models import byte_tokenizer, save_random_model

ModelPath = Callable[[str], Path]
WEIGHT = "model.layers.1.mlp.up_proj.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
GREEDY = Sampling(max_new_tokens=4)


@pytest.fixture
def folder(model_path: ModelPath, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    return Path(shutil.copytree(model_path("llama"), tmp_path / "model"))


def configure(folder: Path, file: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = dict(zip(SHARDS, (names[:10], names[10:]), strict=True))
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path | str, **arguments: Any) -> str:
    """What loading says; in one line."""
    with pytest.raises(ModelLoadError) as caught:
        Engine.load(str(folder), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def explained(engine: Engine) -> list[Step]:
    return list(engine.generate("abc", GREEDY, AttributionSettings()))


def ids(engine: Engine) -> list[int]:
    return [step.id for step in explained(engine)]


@pytest.mark.parametrize("model_type", ["falcon", "mamba", "bloom", "t5", "bert"])
def test_a_family_without_a_row_is_refused_by_name(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=f"'{model_type}'.*Supported families: cohere"):
        Engine.load(str(folder))


def test_a_configuration_of_a_far_larger_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))  # 20 billion parameters, by default
    assert re.search(r"config.json describes 2\d(,\d{3}){3} parameters, the weight files hold [\d,]+:", refusal(folder))


@pytest.mark.parametrize("content", ['{"model_type": "made_up"}', '{"model_type": null}', "{}", "[]", '"llama"'])
def test_a_configuration_of_nothing_known(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    message = refusal(folder)
    assert str(folder) in message
    assert any(said in message for said in ("made_up", "None", "model_type", "no JSON object"))


def test_every_row_says_yes_or_why_not() -> None:
    assert not set(FAMILIES) & set(REFUSED)
    for name in FAMILIES:
        assert family_of(name) is FAMILIES[name]
    for name, reason in REFUSED.items():
        with pytest.raises(UnsupportedModelError, match=re.escape(reason)):
            family_of(name)
    with pytest.raises(UnsupportedModelError, match="'made_up'"):
        family_of("made_up")


def test_a_dtype_that_an_operation_of_the_family_does_not_take(model_path: ModelPath) -> None:
    """Its experts' router takes its weights' dtype and numbers of another."""
    message = refusal(model_path("gpt_oss"), dtype="float16", device="cpu")
    assert message.startswith("the family gpt_oss cannot be computed in float16 on cpu: ")
    assert message.endswith("choose another --dtype, such as float32 or bfloat16")


@pytest.mark.parametrize("content", [b"", b'{"a":', b"\xff\xfe\x00"])
def test_a_configuration_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_a_configuration_that_does_not_fit(folder: Path, changes: dict[str, Any], said: str) -> None:
    configure(folder, **changes)
    assert said in refusal(folder)


def test_no_weights_in_safetensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert f"{folder} has no model.safetensors" in refusal(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "other formats are not loaded" in refusal(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b"x" * 5000, lambda b: b[:30]])
def test_a_damaged_weight_file(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert f"{file} is corrupt or cut off" in refusal(folder)


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(WEIGHT))
    assert f"1 weights are missing, among them {WEIGHT}" in refusal(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 3)}))
    assert f"{WEIGHT} with [3, 3] instead of [96, 64]" in refusal(folder)


def add_layers(tensors: dict[str, Tensor]) -> None:
    """Three layers more than the configuration has."""
    tensors |= {
        re.sub(r"layers\.(\d)", lambda found: f"layers.{int(found[1]) + 3}", name): tensor.clone()
        for name, tensor in tensors.items()
        if ".layers." in name
    }


LEFT_OVER: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
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


@pytest.mark.parametrize(("change", "said"), LEFT_OVER)
def test_weights_that_the_configuration_does_not_describe(
    folder: Path, change: Callable[[dict[str, Tensor]], object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change_weights(folder, change)
    assert re.search(said, refusal(folder))
    assert "UNEXPECTED" not in capfd.readouterr().err  # Transformers' own table of it


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "phi3"])
def test_fewer_layers_than_the_weights_have_in_any_family(model_path: ModelPath, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(model_path(family), tmp_path / "model"))
    configure(folder, "config.json", **{"n_layer" if family == "gpt2" else "num_hidden_layers": 2})
    assert "num_hidden_layers is 2, and they hold layer 2" in refusal(folder)


def test_more_experts_than_the_configuration_has(model_path: ModelPath, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path("mixtral"), tmp_path / "model"))
    configure(folder, num_local_experts=3)
    assert "weights" in refusal(folder)


def test_a_head_of_its_own_where_the_configuration_ties_it(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    assert "a language-model head that is not the embedding" in refusal(folder)


HARMLESS: list[tuple[str, dict[str, Any], dict[str, Tensor]]] = [
    ("llama", {}, {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(3)}),
    ("llama", {"tie_word_embeddings": True}, {}),  # and a copy of the embedding as its head
    ("gpt_neox", {}, {f"gpt_neox.layers.{n}.attention.masked_bias": torch.tensor(-1e9) for n in range(3)}),
    ("gpt2", {}, {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(3)}),
    ("gpt2", {}, {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8) for n in range(3)}),
]


@pytest.mark.parametrize(("family", "settings", "buffers"), HARMLESS)
def test_buffers_of_old_checkpoints_are_no_weights(
    tmp_path: Path, family: str, settings: dict[str, Any], buffers: dict[str, Tensor]
) -> None:
    folder = save_random_model(tmp_path / "model", family, **settings)
    tensors = load_file(folder / "model.safetensors")
    if settings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    assert Engine.load(str(folder)).info.family == family


def test_two_sets_of_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    message = refusal(folder)
    assert "two sets of weights" in message
    assert SHARDS[0] in message
    (folder / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: "model.safetensors"}}))  # some write one anyway
    for file in SHARDS:
        (folder / file).unlink()
    assert Engine.load(str(folder)).info.num_layers == 3


def test_weights_that_are_not_finite(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors[WEIGHT].fill_(torch.nan))
    assert "not finite" in refusal(folder)


def test_a_sharded_checkpoint_is_the_same_model(folder: Path, engine: Engine) -> None:
    shard(folder)
    loaded = Engine.load(str(folder))
    assert ids(loaded) == ids(engine)
    assert loaded.info.num_parameters == engine.info.num_parameters


def test_a_missing_or_damaged_shard(folder: Path) -> None:
    shard(folder)
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[0]).read_bytes()[:-9])
    assert str(folder / SHARDS[0]) in refusal(folder)
    (folder / SHARDS[1]).unlink()
    message = refusal(folder)
    assert SHARDS[1] in message
    assert INDEX in message


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}', "\x00"],
)
def test_a_damaged_index(folder: Path, content: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder)


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
    assert f"{folder} holds no tokenizer" in refusal(folder)


def test_an_end_of_text_that_is_no_id(folder: Path) -> None:
    configure(folder, "generation_config.json", eos_token_id="</s>")
    assert "generation_config.json" in refusal(folder)


def test_ends_of_text_are_the_model_s_and_the_tokenizer_s(folder: Path) -> None:
    configure(folder, "generation_config.json", eos_token_id=[3, 5])
    assert Engine.load(str(folder)).model.end_ids == {3, 5, 257}


@pytest.mark.parametrize(
    ("arguments", "said"),
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
def test_settings_that_cannot_be(folder: Path, arguments: dict[str, Any], said: str) -> None:
    assert said in refusal(folder, **arguments)


def test_settings_are_checked_before_the_weights_are_read(folder: Path) -> None:
    """Hashing and loading a large model takes minutes."""
    (folder / "model.safetensors").write_bytes(b"")
    for arguments in ({"dtype": "float8"}, {"context_tokens": 1}, {"max_new_tokens": 0}):
        assert "model.safetensors" not in refusal(folder, **arguments)


def test_what_is_said_of_a_model(model_path: ModelPath) -> None:
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


def test_hashes_say_what_differs(folder: Path, engine: Engine, tmp_path: Path) -> None:
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


SAME: list[dict[str, Any]] = [
    {"_name_or_path": "/another/folder"}, {"transformers_version": "4.1"}, {"torch_dtype": "bfloat16"},
    {"dtype": "float16"}, {"use_cache": False},
]  # fmt: skip
OTHER: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"max_position_embeddings": 128}, {"eos_token_id": 3},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5000}}, {"attention_dropout": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("change", [*SAME, *OTHER], ids=str)
def test_the_configuration_s_hash_is_of_what_decides_numbers(
    folder: Path, engine: Engine, change: dict[str, Any]
) -> None:
    configure(folder, **change)
    info = Engine.load(str(folder)).info
    assert info.weights_sha256 == engine.info.weights_sha256
    assert (info.config_sha256 == engine.info.config_sha256) == (change in SAME)


def test_the_configuration_s_hash_is_of_where_texts_begin_and_end(folder: Path, engine: Engine) -> None:
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

    def assert_equal(self, what: dict[str, str]) -> None:
        self.compared = what
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
    assert {name for name, its in compared().items() if after[name] != its} == {"chat templates"}


def num_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("delivery", Delivery)
def test_no_pass_leaves_a_hook(model_path: ModelPath, family: str, delivery: Delivery) -> None:
    """One for each rotary embedding stays, to note it; what a pass adds is gone after it, also where it fails."""
    engine = Engine.load(str(model_path(family)))
    model = engine.model.runner.model
    num_rotaries = len(engine.model.runner.pool.cosines)
    assert num_rotaries == (0 if family == "gpt2" else 1)
    assert num_hooks(model) == num_rotaries
    generation = engine.generate("abc", GREEDY, AttributionSettings(delivery=delivery, chunk_size=2))
    for _ in range(4):
        generation.advance()
        assert num_hooks(model) == num_rotaries
        assert "forward" not in vars(model.get_output_embeddings())
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(Exception, match="not finite"):
        list(engine.generate("defgh", GREEDY, AttributionSettings(delivery=delivery)))
    assert num_hooks(model) == num_rotaries
    assert "forward" not in vars(model.get_output_embeddings())


def test_other_models_in_the_process_are_left_alone(model_path: ModelPath) -> None:
    path = model_path("llama")
    tokens = torch.tensor([[256, 1, 2, 3]])

    def run(model: Any) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        logits = model(tokens).logits
        logits[0, -1, 7].backward()
        return logits.detach(), model.model.embed_tokens.weight.grad.clone()

    before = AutoModelForCausalLM.from_pretrained(path)
    expected = run(before)
    engine = Engine.load(str(path))
    generation = engine.generate("abc", GREEDY, AttributionSettings())
    generation.advance()
    after = AutoModelForCausalLM.from_pretrained(path)
    for model in (before, after):
        assert model.config._attn_implementation == "sdpa"
        assert all(torch.equal(a, b) for a, b in zip(run(model), expected, strict=True))
    assert len(list(generation)) > 0
    with pytest.raises(RuntimeError, match="belongs to a gradellm Decoder"):
        engine.model.runner.model(tokens)


def test_the_demo_model_s_name_is_no_path() -> None:
    assert Engine.load().info.name == "gradellm demo model"
