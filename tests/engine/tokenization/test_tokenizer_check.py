"""The loaded tokenizer follows tokenizer.json for any class that tokenizer_config.json names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gradellm_engine import Engine
from gradellm_engine.model.checkpoint import load_tokenizer
from gradellm_engine.tokenization.tokenizer_check import SAMPLES, difference_from
from support.tiny_models import CHAT_TEMPLATE, SPECIALS, byte_tokenizer, save_random_model

MERGES = [("1", "2"), ("12", "3"), ("a", "b"), ("\u0120", "\u0120"), ("\u010a", "\u010a"), ("\u0120", "a")]
Split = Callable[[], Any]
SPLITS: dict[str, Split] = {
    "single digits": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "prefix space": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "single spaces": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "GPT-2's own": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}
CLASSES = [
    "GPT2TokenizerFast",
    "GPT2Tokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "PreTrainedTokenizerFast",
    None,
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("llama"), vocab_size=280)


def byte_pairs(split: Split) -> Tokenizer:
    """As `byte_tokenizer`, with some merges and another split."""
    vocab = json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    core = Tokenizer(BPE(vocab=vocab, merges=MERGES))
    core.pre_tokenizer = split()
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    begin = vocab_id(core, "<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return core


def vocab_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def save(folder: Path, tokenizer: Tokenizer, **changes: Any) -> None:
    """Write the tokenizer's files, with changed settings; a setting of None is removed."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_tokens_are_those_of_the_file(llama: Path, split: str, class_name: str | None) -> None:
    stored = byte_pairs(SPLITS[split])
    save(llama, stored, tokenizer_class=class_name)
    used = load_tokenizer(str(llama), None)
    for text in (*SAMPLES, "a</s>b", "123 123"):
        for special in (False, True):
            encoded = used(text, add_special_tokens=special, return_offsets_mapping=True)
            wanted = stored.encode(text, add_special_tokens=special)
            assert encoded["input_ids"] == wanted.ids
            assert encoded["offset_mapping"] == wanted.offsets
        assert used.decode(wanted.ids, clean_up_tokenization_spaces=False) == stored.decode(
            wanted.ids, skip_special_tokens=False
        )
    assert (used.bos_token, used.eos_token, used.chat_template) == ("<s>", "</s>", CHAT_TEMPLATE)
    assert {"<s>", "</s>"} <= {used.convert_ids_to_tokens(token_id) for token_id in used.all_special_ids}


def test_the_tokenizer_of_the_class_differs(llama: Path) -> None:
    """So that the table above tests something."""
    stored = byte_pairs(SPLITS["single digits"])
    save(llama, stored, tokenizer_class="GPT2TokenizerFast")
    own = AutoTokenizer.from_pretrained(llama)
    assert own("123", add_special_tokens=False)["input_ids"] != stored.encode("123", add_special_tokens=False).ids
    assert "in tokenizer.json" in str(difference_from(stored, own))


def test_the_engine_encodes_by_the_file(llama: Path) -> None:
    stored = byte_pairs(SPLITS["single digits"])
    save(llama, stored, tokenizer_class="GPT2TokenizerFast")
    engine = Engine.load(str(llama))
    assert [token.id for token in engine.tokenize("123").tokens] == stored.encode("123").ids


@pytest.mark.parametrize("class_name", ["GPT2TokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("begins", [True, False])
def test_bos_follows_the_file(llama: Path, class_name: str, begins: bool) -> None:
    """Transformers ignores add_bos_token where there is a tokenizer.json."""
    stored = byte_pairs(SPLITS["single digits"])
    save(llama, stored, tokenizer_class=class_name, add_bos_token=begins)
    used = load_tokenizer(str(llama), None)
    assert used("123")["input_ids"] == stored.encode("123").ids
    stored.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    save(llama, stored, tokenizer_class=class_name, add_bos_token=begins)
    used = load_tokenizer(str(llama), None)
    assert used("123")["input_ids"] == stored.encode("123", add_special_tokens=False).ids


def test_tokens_that_only_the_settings_have_are_kept(llama: Path) -> None:
    stored = byte_pairs(SPLITS["single digits"])
    added = {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    added["single_word"] = False
    token_id = stored.get_vocab_size()
    save(
        llama,
        stored,
        tokenizer_class="GPT2TokenizerFast",
        added_tokens_decoder={str(token_id): added},
        extra_special_tokens=["<|tool|>"],
    )
    used = load_tokenizer(str(llama), None)
    digits = stored.encode("123", add_special_tokens=False).ids
    assert used("123<|tool|>", add_special_tokens=False)["input_ids"] == [*digits, token_id]


def test_a_special_token_s_own_spaces_are_those_of_the_file(llama: Path) -> None:
    """Transformers takes from the settings whether a token strips adjacent spaces."""
    stored = byte_pairs(SPLITS["GPT-2's own"])
    token = {"content": "<|user|>", "special": True, "lstrip": True, "rstrip": True, "normalized": False}
    token["single_word"] = False
    save(llama, stored, added_tokens_decoder={str(vocab_id(stored, "<|user|>")): token})
    used = load_tokenizer(str(llama), None)
    text = "a <|user|> b"
    assert used(text)["input_ids"] == stored.encode(text).ids


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.Lowercase()])
def test_normalisation_is_the_file_s(llama: Path, normalizer: Any) -> None:
    stored = byte_pairs(SPLITS["GPT-2's own"])
    stored.normalizer = normalizer
    save(llama, stored, tokenizer_class="GPT2TokenizerFast")
    used = load_tokenizer(str(llama), None)
    for text in ("CAFE\u0301", "Stra\u00dfe"):
        assert used(text)["input_ids"] == stored.encode(text).ids


def test_the_tokenizer_hash_covers_the_loaded_tokenizer(llama: Path) -> None:
    found = set()
    for split in SPLITS.values():
        save(llama, byte_pairs(split), tokenizer_class="GPT2TokenizerFast")
        found.add(Engine.load(str(llama)).info.tokenizer_sha256)
    assert len(found) == len(SPLITS)
