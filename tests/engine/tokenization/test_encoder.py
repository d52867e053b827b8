"""Encoding equals the tokenizer's, also in chunks; bounded, interruptible, and safe from panics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gradellm_engine import TokenizerError
from gradellm_engine.tokenization import encoder as encoder_module
from gradellm_engine.tokenization.encoder import TextEncoder, TooManyTokensError, interruption_point

Tokenizers = Callable[[str], PreTrainedTokenizerBase]
MODELS = ["llama", "demo", "stories260K"]
words = st.lists(
    st.sampled_from(
        ["a", "the", "Ünï", "日本", "12", "...", "\n", "  ", "😀", "e\u0301", "don't", "<|user|>", "x_y", "и"]
    ),
    max_size=30,
).map(" ".join)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("model", MODELS)
@given(text=st.one_of(words, st.text(st.characters(codec="utf-8"), max_size=20)))
def test_encoding_equals_the_tokenizer(tokenizers: Tokenizers, model: str, add_special_tokens: bool, text: str) -> None:
    tokenizer = tokenizers(model)
    expected: Any = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    found = TextEncoder(tokenizer).encode(text, add_special_tokens=add_special_tokens)
    assert found.ids.tolist() == expected["input_ids"]
    assert [*zip(found.starts.tolist(), found.ends.tolist(), strict=True)] == expected["offset_mapping"]


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "PIECE_CHARACTERS", 5)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("model", ["llama", "demo"])
@pytest.mark.usefixtures("short_pieces")
@given(text=words)
def test_encoding_in_pieces_equals_the_whole(
    tokenizers: Tokenizers, model: str, add_special_tokens: bool, text: str
) -> None:
    encoder = TextEncoder(tokenizers(model))
    assert encoder.can_split
    encoding: Any = encoder.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    found = encoder.encode(text, add_special_tokens=add_special_tokens)
    assert found.ids.tolist() == encoding["input_ids"]
    assert [*zip(found.starts.tolist(), found.ends.tolist(), strict=True)] == encoding["offset_mapping"]


def tokenizer_of(core: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_text_that_encodes_differently_in_pieces_is_not_split(tokenizers: Tokenizers) -> None:
    assert not TextEncoder(tokenizers("stories260K")).can_split  # puts a space before every text
    letters = {letter: index for index, letter in enumerate("ab ")}
    assert TextEncoder(tokenizer_of(Tokenizer(BPE(letters | {" a": 3}, [(" ", "a")])))).can_split
    spanning = letters | {" b": 3, "a b": 4}
    assert not TextEncoder(tokenizer_of(Tokenizer(BPE(spanning, [(" ", "b"), ("a", " b")])))).can_split
    added = Tokenizer(BPE(letters, []))
    added.add_special_tokens(["<end of text>"])
    assert not TextEncoder(tokenizer_of(added)).can_split


@contextmanager
def checking(check: Callable[[], None]) -> Iterator[None]:
    token = interruption_point.set(check)
    try:
        yield
    finally:
        interruption_point.reset(token)


class GoneError(Exception):
    pass


@pytest.mark.usefixtures("short_pieces")
def test_an_interruption_ends_encoding_between_pieces(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(tokenizers("demo"))
    assert encoder.can_split
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            raise GoneError

    with checking(check), pytest.raises(GoneError):
        encoder.encode("some words of a text " * 100, add_special_tokens=True)
    assert checks == 3


class CountingCore:
    """A tokenizer's core that counts the characters that it encodes."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.num_characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.num_characters += sum(map(len, texts))
        return self._core.encode_batch(texts, **options)


@pytest.mark.parametrize("text", ["some words of a text ", "😀", "\u00e4"])
def test_far_too_many_tokens_are_refused_early(tokenizers: Tokenizers, text: str) -> None:
    encoder = TextEncoder(tokenizers("demo"))
    assert encoder.can_split
    core = CountingCore(encoder.core)
    encoder.core = core
    with pytest.raises(TooManyTokensError) as caught:
        encoder.encode(text * (1_000_000 // len(text)), add_special_tokens=True, max_tokens=500)
    assert not caught.value.is_all
    assert core.num_characters <= 2 * encoder_module.PIECE_CHARACTERS


def test_one_token_too_many_is_counted(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(tokenizers("llama"))
    assert len(encoder.encode("abcd", add_special_tokens=True, max_tokens=5).ids) == 5
    with pytest.raises(TooManyTokensError) as caught:
        encoder.encode("abcde", add_special_tokens=True, max_tokens=5)
    assert (caught.value.count, caught.value.is_all) == (6, True)


def panicking(model: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer whose pre-tokenizer backtracks too long on some texts: a panic of its Rust core."""
    core = json.loads(model.backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    core["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, core["pre_tokenizer"]]}
    return tokenizer_of(Tokenizer.from_str(json.dumps(core)))


def test_a_panic_is_an_error_that_does_not_quote_the_text(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(panicking(tokenizers("demo")))
    assert len(encoder.encode("aab", add_special_tokens=False).ids)
    with pytest.raises(TokenizerError, match="fails on this text") as caught:
        encoder.encode("a" * 40 + "b", add_special_tokens=False)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_failing_decoder_is_an_error_too(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(tokenizers("demo"))
    with pytest.raises(TokenizerError):
        encoder.decode([-1], skip_special_tokens=False)


class PanickingCore(CountingCore):
    """A tokenizer's core that panics when it decodes the vocabulary: no `Exception`, as a panic in Rust."""

    def decode_batch(self, sequences: list[list[int]], **options: Any) -> Any:
        raise BaseException("panicked")


def test_a_vocabulary_that_cannot_be_decoded_is_encoded_whole(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(tokenizers("demo"))
    encoder.core = PanickingCore(encoder.core)
    encoder.prepare()
    assert not encoder.can_split
    assert len(encoder.encode("aab", add_special_tokens=False).ids)


def test_truncation_and_padding_are_switched_off(tokenizers: Tokenizers) -> None:
    core = Tokenizer(BPE({"a": 0, "b": 1}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.enable_truncation(2)
    core.enable_padding(length=8)
    assert TextEncoder(tokenizer_of(core)).encode("abab", add_special_tokens=False).ids.tolist() == [0, 1, 0, 1]
