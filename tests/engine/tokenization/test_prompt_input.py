"""Inputs and their segments refuse what is undefined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from gradellm_engine import (
    InvalidRequestError,
    Message,
    MessageSpan,
    PromptInput,
    Segment,
)

Tokenizers = Callable[[str], PreTrainedTokenizerBase]


def messages(*turns: tuple[str, str], segments: tuple[Segment, ...] = ()) -> PromptInput:
    return PromptInput(messages=tuple(Message(*turn) for turn in turns), segments=segments)


@pytest.mark.parametrize(
    ("segments", "field"),
    [
        ([Segment("a", 0, 9)], "input.segments[0]"),
        ([Segment("a", -1, 2)], "input.segments[0]"),
        ([Segment("a", 2, 2)], "input.segments[0]"),
        ([Segment("a", 0, 2), Segment("b", 1, 3)], "input.segments[1]"),
        ([Segment("b", 1, 3), Segment("a", 0, 2)], "input.segments[0]"),
        ([Segment("a", 0, 2), Segment("a", 2, 3)], "input.segments[1].name"),
        ([Segment("", 0, 2)], "input.segments[0].name"),
        ([Segment("\ud800", 0, 2)], "input.segments[0].name"),
        ([Segment("a", 0, 2, 0)], "input.segments[0].message"),
    ],
)
def test_bad_segments_of_a_raw_prompt(segments: list[Segment], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PromptInput(prompt="abcd", segments=tuple(segments))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("segments", "field"),
    [
        ([Segment("a", 0, 1, 2)], "input.segments[0].message"),
        ([Segment("a", 0, 1, -1)], "input.segments[0].message"),
        ([Segment("a", 0, 1)], "input.segments[0].message"),
        ([Segment("a", 0, 3, 1)], "input.segments[0]"),
        ([Segment("a", 0, 1, 0), Segment("b", 0, 1, 1), Segment("c", 0, 2, 0)], "input.segments[2]"),
    ],
)
def test_bad_segments_of_messages(segments: list[Segment], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        messages(("user", "abcd"), ("user", "ef"), segments=tuple(segments))
    assert caught.value.field == field


def test_spans_of_token_ids() -> None:
    ids = PromptInput(
        prompt_ids=(1,),
        segments=(Segment("a", 0, 1),),
        message_spans=(MessageSpan("user", 0, 3), MessageSpan("x", 3, 3)),
    )
    assert ids.message_spans[0].end == 3  # the text is not known yet


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": "abc", "message_spans": (MessageSpan("user", 0, 1),)}, "input.message_spans"),
        ({"prompt_ids": (1,), "message_spans": (MessageSpan("", 0, 1),)}, "input.message_spans[0].role"),
        ({"prompt_ids": (1,), "message_spans": (MessageSpan("user", 2, 1),)}, "input.message_spans[0]"),
        ({"prompt_ids": (1,), "message_spans": (MessageSpan("user", -1, 1),)}, "input.message_spans[0]"),
        (
            {"prompt_ids": (1,), "message_spans": (MessageSpan("user", 0, 3), MessageSpan("user", 2, 4))},
            "input.message_spans[1]",
        ),
        ({"prompt_ids": (1,), "segments": (Segment("a", 0, 1, 0),)}, "input.segments[0].message"),
        ({"prompt_ids": (1,), "segments": (Segment("a", 0, 2), Segment("b", 1, 3))}, "input.segments[1]"),
    ],
)
def test_bad_spans_of_token_ids(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PromptInput(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "input"),
        ({"prompt": "a", "prompt_ids": (1,)}, "input"),
        ({"prompt": "", "messages": (Message("user", "a"),)}, "input"),
        ({"prompt": ""}, "input.prompt"),
        ({"prompt": "a\ud800"}, "input.prompt"),
        ({"messages": (Message("user", "a"), Message("", "b"))}, "input.messages[1].role"),
        ({"messages": (Message("us\udfffer", "a"),)}, "input.messages[0].role"),
        ({"messages": (Message("user", "a\udfff"),)}, "input.messages[0].content"),
    ],
)
def test_bad_inputs(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PromptInput(**arguments)
    assert caught.value.field == field
