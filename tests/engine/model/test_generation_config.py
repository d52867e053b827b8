"""Defaults of sampling and end tokens from generation_config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from gradellm_engine import Engine, GenerationConfigSource, ModelLoadError, Sampling
from gradellm_engine.model.generation_config import GenerationDefaults, end_ids, generation_defaults


def defaults_of(source: GenerationConfigSource = GenerationConfigSource.AUTO, **stored: Any) -> GenerationDefaults:
    return generation_defaults(GenerationConfig(**stored), source)


def test_qwen_s_file() -> None:
    stored: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    }
    defaults = defaults_of(**stored, presence_penalty=1.5, max_new_tokens=2048)
    expected = Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05, presence_penalty=1.5)
    assert (defaults.sampling, defaults.max_new_tokens) == (expected, 2048)
    assert str(defaults) == (
        "temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05, presence_penalty=1.5, max_new_tokens=2048"
    )


def test_sampling_without_a_temperature_has_transformers_own() -> None:
    assert defaults_of(do_sample=True, top_k=64, top_p=0.95).sampling == Sampling(temperature=1, top_k=64, top_p=0.95)


@pytest.mark.parametrize("stored", [{}, {"eos_token_id": [1, 2]}, {"do_sample": False}, {"num_beams": 4}])
def test_a_file_without_sampling_leaves_the_defaults(stored: dict[str, Any]) -> None:
    assert defaults_of(**stored) == GenerationDefaults()
    assert str(defaults_of(**stored)) == ""


def test_none_leaves_the_file_out() -> None:
    assert defaults_of(GenerationConfigSource.NONE, do_sample=True, temperature=0.7) == GenerationDefaults()
    assert generation_defaults(None, GenerationConfigSource.AUTO) == GenerationDefaults()


@pytest.mark.parametrize(
    ("name", "value"), [("top_p", 3.0), ("temperature", -1.0), ("min_p", "a"), ("top_k", 1.5), ("max_new_tokens", 0)]
)
def test_an_invalid_value_is_named_with_the_flag(name: str, value: Any) -> None:
    config = GenerationConfig()
    setattr(config, name, value)
    with pytest.raises(ModelLoadError, match=f"{name} of generation_config.json .* --generation-config none"):
        generation_defaults(config, GenerationConfigSource.AUTO)


def test_end_tokens_are_those_of_file_and_tokenizer() -> None:
    tokenizer: Any = SimpleNamespace(eos_token_id=7)
    for eos, expected in [(None, {7}), (5, {5, 7}), ([5, 6], {5, 6, 7})]:
        assert end_ids(GenerationConfig(eos_token_id=eos), tokenizer) == expected
    assert end_ids(None, tokenizer) == {7}
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        end_ids(GenerationConfig(eos_token_id="a"), tokenizer)


def test_a_loaded_model_has_its_file_s_defaults(model_path: Callable[[str], Path], tmp_path: Path) -> None:
    for file in model_path("llama").iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "generation_config.json"
    config.unlink(missing_ok=True)
    config.write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5}')
    engine = Engine.load(str(tmp_path))
    assert engine.generation_defaults.sampling == Sampling(temperature=0.6, top_p=0.9)
    assert engine.generate("a", engine.generation_defaults.sampling).started.sampling.max_new_tokens == 5
    plain = Engine.load(str(tmp_path), generation_config=GenerationConfigSource.NONE)
    assert plain.generation_defaults.sampling == Sampling()
