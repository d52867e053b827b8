"""Inputs are refused by their counts and lengths before they are tokenised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from gradellm_engine import (
    InvalidRequestError,
    Message,
    PromptInput,
    PromptLimits,
    Segment,
)
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt_reader import read_prompt
from support.tiny_models import VOCAB_SIZE

Tokenizers = Callable[[str], PreTrainedTokenizerBase]


class FailingCore:
    """A tokenizer's core that must not be used."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail("the input was tokenised before its counts were checked")


LIMITS = PromptLimits(tokens=100, characters=1000, messages=20)


@pytest.mark.parametrize(
    ("given_input", "field"),
    [
        (PromptInput(prompt_ids=(1,) * 101), "input.prompt_ids"),
        (PromptInput(prompt="a" * 1001), "input.prompt"),
        (PromptInput(messages=(Message("user", "a"),) * 21), "input.messages"),
        (PromptInput(messages=(Message("user", "a" * 600),) * 2), "input.messages"),
        (PromptInput(messages=(Message("u" * 1001, "a"),)), "input.messages"),
        (
            PromptInput(prompt="a" * 200, segments=tuple(Segment(str(i), i, i + 1) for i in range(101))),
            "input.segments",
        ),
        (PromptInput(prompt="ab", segments=(Segment("n" * 1001, 0, 1),)), "input.segments"),
    ],
)
def test_inputs_are_refused_by_counts_and_lengths(
    tokenizers: Tokenizers, given_input: PromptInput, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(tokenizers("llama"))
    monkeypatch.setattr(encoder, "core", FailingCore())
    with pytest.raises(InvalidRequestError, match="the limit is") as caught:
        read_prompt(given_input, encoder, VOCAB_SIZE, LIMITS)
    assert caught.value.field == field


def test_limits_follow_from_the_tokenizer_and_the_template(tokenizers: Tokenizers) -> None:
    encoder = TextEncoder(tokenizers("llama"))
    # The template writes three tokens for a message of one letter: its role, the letter, and an end.
    assert PromptLimits.of(encoder, 300) == PromptLimits(300, 300 * len("<|assistant|>"), 100)


def test_rendered_text_that_is_too_long_is_refused(tokenizers: Tokenizers) -> None:
    tokenizer = copy.deepcopy(tokenizers("llama"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] * 1000 }}{% endfor %}"
    encoder = TextEncoder(tokenizer)
    with pytest.raises(InvalidRequestError, match="5,000 characters; the limit is 1,000"):
        read_prompt(PromptInput(messages=(Message("user", "abcde"),)), encoder, VOCAB_SIZE, LIMITS)
