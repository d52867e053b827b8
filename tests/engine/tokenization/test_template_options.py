"""Options of the chat template: their effect on the prompt, their places in it, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from gradellm_engine import InvalidRequestError, Message, PromptInput, TemplateOptions
from gradellm_engine.tokenization.chat_template import place_messages, render
from gradellm_engine.tokenization.template_options import MAX_KWARGS_CHARACTERS, RESERVED

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}[no]{% endif %}{% endif %}{{ note }}"
)
MESSAGES = [Message("user", " Who? "), Message("assistant", "It is ")]


@pytest.fixture
def tokenizer(tokenizers: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    with_template = copy(tokenizers("llama"))
    with_template.chat_template = TEMPLATE
    return with_template


def refused(call: Callable[[], object]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (TemplateOptions(), "It is [end][assistant]"),
        (TemplateOptions({"enable_thinking": False}), "It is [end][assistant][no]"),
        (TemplateOptions({"enable_thinking": True, "unknown": [1]}), "It is [end][assistant]"),
        (TemplateOptions({"note": 5}), "It is [end][assistant]5"),
        (TemplateOptions(add_generation_prompt=True), "It is [end][assistant]"),
        (TemplateOptions(add_generation_prompt=False), "It is [end]"),
        (TemplateOptions(continue_final_message=True), "It is "),
        (TemplateOptions({"note": 5}, add_generation_prompt=False, continue_final_message=True), "It is "),
    ],
)
def test_options_change_the_prompt_and_messages_are_found_in_it(
    tokenizer: PreTrainedTokenizerBase, options: TemplateOptions, end: str
) -> None:
    text = render(MESSAGES, tokenizer, options=options)
    assert text == f"[user] Who? [end][assistant]{end}"
    placement = place_messages(MESSAGES, text, tokenizer, options=options)
    assert placement.unplaced == ()
    assert [text[span.start : span.end] for span in placement.spans] == [" Who? ", "It is "]


def test_a_template_that_drops_the_last_message_cannot_continue_it(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}"
    secret = Message("assistant", "x" * 5000)
    error = refused(
        lambda: render([MESSAGES[0], secret], tokenizer, options=TemplateOptions(continue_final_message=True))
    )
    assert error.field == "input.messages"
    assert len(error.description) < 400


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_kwargs_do_not_name_what_has_its_own_field(name: str) -> None:
    assert refused(lambda: TemplateOptions({name: []})).field == f"input.chat_template_kwargs.{name}"


def test_a_message_is_continued_or_a_new_one_begun() -> None:
    error = refused(lambda: TemplateOptions(add_generation_prompt=True, continue_final_message=True))
    assert error.field == "input.continue_final_message"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (TemplateOptions({"a": 1}), "chat_template_kwargs"),
        (TemplateOptions(add_generation_prompt=False), "add_generation_prompt"),
        (TemplateOptions(continue_final_message=True), "continue_final_message"),
    ],
)
@pytest.mark.parametrize("prompt", [{"prompt": "a"}, {"prompt_ids": (1,)}])
def test_options_are_for_messages(options: TemplateOptions, field: str, prompt: dict[str, Any]) -> None:
    assert refused(lambda: PromptInput(**prompt, template=options)).field == f"input.{field}"


def test_kwargs_are_read_from_json() -> None:
    text = '{"enable_thinking": false, "n": 12345678901234567890, "list": [1, 2.5, null, "\\u00e9"]}'
    assert TemplateOptions.parsed_kwargs(text) == {
        "enable_thinking": False,
        "n": 12345678901234567890,
        "list": [1, 2.5, None, "é"],
    }


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        "[" * 5000,
        '{"a":' * 1600 + "1" + "}" * 1600,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": "' + "x" * MAX_KWARGS_CHARACTERS + '"}',
        '{"a": "' + "x" * 10**7 + '"}',
    ],
)
def test_hostile_kwargs_are_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    assert refused(lambda: TemplateOptions.parsed_kwargs(text)).field == "input.chat_template_kwargs"
    assert time.perf_counter() - began < 2
