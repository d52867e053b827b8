"""The tokenizer and its chat template: as it ships, and newly trained on a few texts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.stories import story
from gradellm_engine.demo_model.training.tokenizer import BOS, END, PAD, train_tokenizer

TEXTS = [story(Random(seed)) for seed in range(40)]


@pytest.fixture(scope="module", params=["shipped", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "trained":
        return train_tokenizer(TEXTS, context_length=64)
    shipped: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(CHECKPOINT)
    return shipped


def test_chat_template_writes_roles_and_generation_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    text = "<s><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>Hi<|end|><|user|>Bye<|end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == text + "<|assistant|>"
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_template_refuses_other_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "4"}])


@given(text=st.text())
def test_any_text_encodes_without_loss(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    covered = [False] * len(text)
    for start, end in encoded["offset_mapping"]:
        assert 0 <= start < end <= len(text)
        covered[start:end] = [True] * (end - start)
    assert all(covered)


def test_raw_text_begins_with_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Once upon a time")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_special_tokens_have_the_first_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    """A checkpoint's ids of padding, beginning and end stay the same, whatever the tokenizer is trained on."""
    assert tokenizer.convert_tokens_to_ids([PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>"]) == [*range(6)]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_training_merges_what_is_frequent() -> None:
    tokenizer = train_tokenizer(TEXTS, context_length=64)
    (text,) = TEXTS[:1]
    assert len(tokenizer(text)["input_ids"]) < len(text) / 3
    unseen = "ζβγ"  # two bytes a letter
    assert len(tokenizer(unseen, add_special_tokens=False)["input_ids"]) == len(unseen.encode())
    assert tokenizer.model_max_length == 64
