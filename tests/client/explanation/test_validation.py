"""Consistency checks: every part that is out of place is refused with its path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.conftest import explanation
from gradellm import Alternative, Attribution, InvalidExplanationError, PromptToken, Source, Started, Token
from gradellm.explanation.validation import check_explanation

FLOAT32 = 3.4028234663852886e38  # the largest
TEXT = "Once upon"
PROMPT = (
    PromptToken(1, "Once", 0, 4, "user", None, "", False),
    PromptToken(2, " upon", 4, 9, "user", None, "", False),
)


def started(*sources: Source, **changes: Any) -> Started:
    fields = {"prompt_text": TEXT, "prompt_tokens": PROMPT, "sources": sources}
    return replace(explanation().started, **{**fields, **changes})


def token(index: int, **changes: Any) -> Token:
    return replace(Token(index, 5, " a", 2 * index, 2 * index + 2, -1.0, (), False, None), **changes)


def row(index: int, *scores: float, **changes: Any) -> Attribution:
    return replace(Attribution(index, scores, (), 5, None), **changes)


TOKENS = (token(0), token(1))


def first(**changes: Any) -> Started:
    return started(prompt_tokens=(replace(PROMPT[0], **changes), PROMPT[1]))


def second(**changes: Any) -> Started:
    return started(prompt_tokens=(PROMPT[0], replace(PROMPT[1], **changes)))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (first(id=-1), r"started\.prompt_tokens\[0\]\.id: must be a token id, 0 to 2147483647, not -1"),
        (first(id=2**31), r"prompt_tokens\[0\]\.id"),
        (first(start=-1), r"prompt_tokens\[0\]: start -1 and end 4 do not lie in the prompt's 9 code points"),
        (first(end=10), r"prompt_tokens\[0\]: start 0 and end 10"),
        (first(start=5), r"prompt_tokens\[0\]: start 5 and end 4"),
        (second(start=3, end=3), r"prompt_tokens\[1\]: begins or ends before the previous"),
        (first(message=-1), r"prompt_tokens\[0\]\.message: must be an index, not -1"),
        (first(message=2**31), r"prompt_tokens\[0\]\.message"),
        (started(Source("a", ())), r"sources\[0\]\.token_indexes: must have at least one"),
        (started(Source("a", (0,), (0,))), r"sources\[0\]\.completion_indexes: must be empty"),
        (started(Source("a", (0, 2))), r"sources\[0\]\.token_indexes: has 2, but the prompt has 2 tokens"),
        (started(Source("a", (-1,))), r"token_indexes: has -1"),
        (started(Source("a", (1, 0))), r"token_indexes: must ascend"),
        (started(Source("a", (0, 1)), Source("b", (1,))), r"have 3 tokens of a prompt of 2"),
    ],
)
def test_inconsistent_prompts_are_refused(start: Started, message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        check_explanation(start, TOKENS, ())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([token(0), token(0)], r"tokens\[1\]\.index: is 0: indexes must ascend"),
        ([token(-1)], r"tokens\[0\]\.index: is -1"),
        ([token(0), token(2)], "tokens: a token is missing between 0 and 2"),
        ([token(2**17 + 1)], r"tokens\[0\]\.index: is 131073; at most 131,072 tokens may be forced"),
        ([token(0, id=-1)], r"tokens\[0\]\.id: must be a token id"),
        ([token(0, end=3)], r"tokens\[0\]: start 0 and end 3 are not those of its 2 code points"),
        ([token(0, start=2, end=0)], r"tokens\[0\]: start 2 and end 0 are not"),
        ([token(0), token(1, start=9, end=11)], r"tokens\[1\]: start 9 and end 11 are outside"),
        ([token(0, start=-2, end=0)], r"tokens\[0\]: start -2 and end 0 are outside"),
        ([token(0, source_index=3)], r"tokens\[0\]\.source_index: is 3, but there are 3 columns before it"),
        ([token(0, source_index=-1)], r"tokens\[0\]\.source_index: is -1"),
        ([token(0, alternatives=(Alternative(2**31, "b", -1.0),))], r"tokens\[0\]\.alternatives\.id"),
    ],
)
def test_inconsistent_tokens_are_refused(tokens: Sequence[Token], message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        check_explanation(started(), tokens, ())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, 1), row(0, 1)], r"attributions\[1\]\.token_index: is 0: indexes must ascend"),
        ([row(-1)], r"attributions\[0\]\.token_index: is -1"),
        ([row(2, 1)], r"attributions\[0\]\.token_index: is 2, but the last token is 1"),
        ([row(0, 1, 2, 3)], r"attributions\[0\]\.scores: are 3, more than the 2 columns before its token"),
        ([row(1, 1, 2, 3, 4)], r"scores: are 4, more than the 3 columns"),
        ([row(0, 1, source_indexes=(2,))], r"source_indexes: have 2, but there are 2 columns before"),
        ([row(0, 1, source_indexes=(-1,))], r"source_indexes: have -1"),
        ([row(0, 1, 2, source_indexes=(1,))], r"attributions\[0\]: has 2 scores for 1 source_indexes"),
        ([row(0, 1, 2, source_indexes=(1, 1))], r"source_indexes: have a column twice"),
        ([row(0, 1, 2 * FLOAT32)], r"attributions\[0\]\.scores\[1\]: 6\.80565e\+38 exceeds the range of float32"),
        ([row(0, 1, -2 * FLOAT32)], "exceeds the range"),
        ([row(0, 1, target_token_id=-1)], r"attributions\[0\]\.target_token_id: must be a token id"),
        ([row(0, 1, contrast_token_id=2**31)], r"attributions\[0\]\.contrast_token_id: must be a token id"),
    ],
)
def test_inconsistent_rows_are_refused(rows: Sequence[Attribution], message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        check_explanation(started(), TOKENS, rows)


def test_the_widest_consistent_explanation_is_accepted() -> None:
    """Each value at its limit: float32, scores not finite, the last column, an empty and a shared character."""
    prompt = (replace(PROMPT[0], id=2**31 - 1, message=2**31 - 1), replace(PROMPT[1], start=3), *(PROMPT[1],) * 2)
    tokens = (token(0, source_index=4), token(1, text="", start=2, end=2, source_index=5))
    rows = (
        row(0, FLOAT32, -math.inf, math.nan, 0.0, target_token_id=2**31 - 1, contrast_token_id=0),
        row(1, 1.0, 2.0, source_indexes=(4, 0)),
    )
    check_explanation(started(prompt_tokens=prompt), tokens, rows)
    check_explanation(started(Source("a", (0,)), Source("b", (1,))), TOKENS, (row(1, 1.0, 2.0, 3.0),))
    check_explanation(started(prompt_text="", prompt_tokens=()), (), ())


def test_a_resumed_completion_begins_after_its_forced_tokens() -> None:
    """Forced tokens are columns and may have rows; offsets begin where the first token does."""
    check_explanation(started(), (token(3), token(4, source_index=6)), (row(1, 1, 2, 3), row(4, *[1.0] * 6)))
    with pytest.raises(InvalidExplanationError, match="outside the completion's text"):
        check_explanation(started(), (token(3), token(4, start=0, end=2)), ())


def test_overlapping_tokens_are_bounded() -> None:
    """Tokens may share characters, but the text that all of them draw is proportional to the explanation's size."""
    text = "x" * 1000
    whole = PromptToken(1, "", 0, 1000, "user", None, "", False)
    check_explanation(started(prompt_text=text, prompt_tokens=(whole,) * 4), (), ())
    with pytest.raises(InvalidExplanationError, match="cover 5000 code points of a prompt of 1000"):
        check_explanation(started(prompt_text=text, prompt_tokens=(whole,) * 5), (), ())
