"""Reasoning in completions: blocks between markers, however they are opened, closed and tokenised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.explanation.conftest import explanation
from gradellm import PromptToken, Token
from gradellm.explanation.reasoning import Markers, reasoning_tokens

THINK = PromptToken(900, "<think>", 0, 7, "template", None, "", True)


def tokens(*texts: str, first: int = 0) -> list[Token]:
    """Tokens of these texts; a text in bars, "|id|", is a special token with this id, which has no text."""
    found, position = [], 0
    for index, text in enumerate(texts, first):
        special = text.startswith("|")
        shown = "" if special else text
        token_id = int(text.strip("|")) if special else index
        found.append(Token(index, token_id, shown, position, position + len(shown), -1.0, (), special, None))
        position += len(shown)
    return found


@pytest.mark.parametrize(
    ("prompt", "texts", "expected"),
    [
        ("Why?", ["<think>", "hm", "</think>", " yes"], {0, 1, 2}),
        ("Why?", ["<th", "ink>\nhm", "</", "think>\n", " yes"], {0, 1, 2, 3}),
        ("Why?", ["Well", "<think>", "hm"], {1, 2}),  # not closed
        ("Why?<think>\n", ["hm", "</think>", " yes"], {0, 1}),  # opened by the template
        ("Why?<think>\n\n</think>\n\n", ["yes"], set()),
        ("What is <think>?", ["A", " tag"], set()),
        ("Why?", ["yes", "</think>", "no"], set()),
        ("Why?", ["<think>", "a", "</think>", "b", "<think>", "c", "</think>", "d"], {0, 1, 2, 4, 5, 6}),
        ("Why?", [], set()),
        ("Why?<think>", [], set()),
    ],
)
def test_blocks(prompt: str, texts: list[str], expected: set[int]) -> None:
    assert reasoning_tokens(prompt, (), tokens(*texts)) == expected


def test_a_block_that_forced_tokens_opened() -> None:
    assert reasoning_tokens("Why?", (), tokens("hm", "</think>", " yes", first=3)) == {3, 4}
    assert reasoning_tokens("Why?", (), tokens("yes", " and", " no", first=3)) == set()
    assert reasoning_tokens("Why?", (), tokens("a", "<think>", "b", "</think>", first=3)) == {4, 5, 6}


def test_markers_that_are_special_tokens_are_known_from_the_prompt() -> None:
    """A special token of a completion has no text; one with its id in the prompt has."""
    close = replace(THINK, id=901, text="</think>")
    answer = tokens("|900|", "hm", "|901|", " yes", "|7|")
    assert reasoning_tokens("Why?", (THINK, close), answer) == {0, 1, 2}
    assert reasoning_tokens("Why?", (), answer) == set()


def test_other_markers_are_data() -> None:
    brackets = Markers("[THINK]", "[/THINK]")
    assert reasoning_tokens("Why?", (), tokens("[THINK]", "hm", "[/THINK]", "yes"), (brackets,)) == {0, 1, 2}


pieces = st.sampled_from(["<think>", "</think>", "<think", ">", "a", "", "|9|"])


@given(st.lists(pieces, max_size=12), st.sampled_from(["", "<think>"]))
def test_it_is_every_token_that_has_a_character_of_a_block(texts: list[str], prompt: str) -> None:
    """Naively: a flag of each character, set from an opening marker to the end of the next closing one."""
    found = tokens(*texts)
    text = "".join(token.text for token in found)
    inside, flags, position = bool(prompt), [], 0
    while position < len(text):
        marker = "</think>" if inside else "<think>"
        step = len(marker) if text.startswith(marker, position) else 1
        flags += [inside or step > 1] * step
        position += step
        inside ^= step > 1
    expected = {token.index for token in found if any(flags[token.start : token.end])}
    inside_only = {token.index for token in found if token.text}
    assert reasoning_tokens(prompt, (), found) & inside_only == expected


def test_parts_by_segment_name_it() -> None:
    loaded = explanation()
    texts = ("<think>", "</think>", " It", " is")
    answer = tuple(
        replace(token, text=text, start=start, end=start + len(text), source_index=6 + token.index)
        for token, text, start in zip(loaded.tokens, texts, (0, 7, 15, 18), strict=True)
    )
    row = replace(loaded.attributions[-1], scores=(0.0,) * 6 + (1.0, 2.0, 4.0))
    named = replace(loaded, tokens=answer, attributions=(row,))
    assert named.reasoning == {0, 1}
    scores = {part.label: part.score for part in named.parts("segment", 3)}
    assert scores == {"": 0, "doc": 0, "reasoning": 3, "completion": 4}
    assert [part.label for part in named.parts("role", 3)][-1] == "completion"
