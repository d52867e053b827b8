"""The words of a prompt, and its tails."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from gradellm_engine import Message, PromptInput
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt import TAIL_TOKENS, prompt_tails
from gradellm_engine.tokenization.prompt_reader import read_prompt

Tokenizers = Callable[[str], PreTrainedTokenizerBase]


@given(text=st.text(st.sampled_from("ab \n😀é.日本"), min_size=1, max_size=20))
@pytest.mark.parametrize("model", ["llama", "demo", "stories260K"])
def test_tokens_of_one_character_are_in_one_word(tokenizers: Tokenizers, model: str, text: str) -> None:
    tokenizer = tokenizers(model)
    prompt = read_prompt(PromptInput(prompt=text), TextEncoder(tokenizer), len(tokenizer))
    again = read_prompt(PromptInput(prompt_ids=tuple(prompt.ids)), TextEncoder(tokenizer), len(tokenizer))
    for each in (prompt, again):
        assert all(b - a in (0, 1) for a, b in pairwise(each.words))
    written = [(token, word) for token, word in zip(prompt.tokens, prompt.words, strict=True) if not token.special]
    for (left, word), (right, following) in pairwise(written):
        if right.start < left.end:
            assert word == following
    if not prompt.text[0].isspace():  # some tokenizers drop a leading space when they decode
        assert prompt.words == again.words


def test_words_end_with_their_message(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("llama")
    turns = (Message("system", "Be nice"), Message("user", "fox eats"))
    prompt = read_prompt(PromptInput(messages=turns), TextEncoder(tokenizer), len(tokenizer))
    pairs = [(word, token.text) for word, token in zip(prompt.words, prompt.tokens, strict=True)]
    words = ["".join(text for _, text in group) for _, group in groupby(pairs, key=lambda pair: pair[0])]
    assert words == ["<s>", "<|system|>", "Be", " nice", "</s>", "<|user|>", "fox", " eats", "</s>", "<|assistant|>"]


@pytest.mark.parametrize("model", ["llama", "demo", "stories260K"])
def test_tails_grow_to_the_whole_prompt(tokenizers: Tokenizers, model: str) -> None:
    tokenizer = tokenizers(model)
    text = "Once upon a time, a red fox did not like rain. " * 12
    prompt = read_prompt(PromptInput(prompt=text), TextEncoder(tokenizer), len(tokenizer))
    tails = list(prompt_tails(prompt))
    lengths = [len(tail.ids) for tail in tails]
    assert lengths == sorted(lengths)
    assert lengths[0] == TAIL_TOKENS
    assert [tail.add_special_tokens for tail in tails[-2:]] == [True, False]
    for tail in tails:
        assert tail.ids == prompt.ids[-len(tail.ids) :]
        assert text.endswith(tail.text)
    assert tails[-1].text == text
