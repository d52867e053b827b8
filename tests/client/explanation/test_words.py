"""Tokens as words, and as units that share characters."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.explanation.conftest import explanation
from gradellm import Explanation, PromptToken, Token
from gradellm.explanation.words import Grouping, characters, is_written, prompt_words, words


def completion(*pieces: str, numbers: tuple[int | None, ...] = ()) -> list[Token]:
    """Tokens of these texts; "<...>" is a special token without text. `numbers` are the engine's word indexes."""
    tokens, start = [], 0
    for index, piece in enumerate(pieces):
        special = piece.startswith("<")
        text = "" if special else piece
        number = numbers[index] if numbers else None
        tokens.append(Token(index, index, text, start, start + len(text), -1.0, (), special, None, number))
        start += len(text)
    return tokens


def prompt(*spans: tuple[int, int], text: str, **changes: Any) -> list[PromptToken]:
    tokens = [PromptToken(i, text[a:b], a, b, "user", None, "", False) for i, (a, b) in enumerate(spans)]
    return [replace(token, **changes) for token in tokens]


def test_words_are_tokens_between_white_space() -> None:
    words = explanation().words
    assert [(word.text, word.token_indexes) for word in words] == [("It", (0,)), ("purrs", (1, 2)), ("loud", (3,))]
    assert [explanation().text[word.start : word.end] for word in words] == ["It", "purrs", "loud"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (("On", "ce", " up", "on", "."), "Once|upon."),
        (("a ", "b", "\n"), "a|b"),
        (("你", "好", "吗"), "你|好|吗"),
        (("caf", "é"), "café"),
    ],
)
def test_words_of_older_files_are_parted_at_white_space(pieces: tuple[str, ...], expected: str) -> None:
    """What an older server sent has no word indexes."""
    loaded, start = explanation(), 0
    tokens, prompt = [], []
    for index, text in enumerate(pieces):
        end = start + len(text)
        tokens.append(Token(index, index, text, start, end, -1.0, (), False, None))
        prompt.append(PromptToken(index, text, start, end, "user", None, "", False))
        start = end
    started = replace(loaded.started, prompt_text="".join(pieces), prompt_tokens=tuple(prompt))
    full = Explanation(started, tuple(tokens), (), None)
    plain = json.loads(full.to_json())
    for token in (*plain["tokens"], *plain["started"]["prompt_tokens"]):
        del token["word"]
    old = Explanation.from_json(json.dumps(plain))
    assert old == full
    assert "|".join(word.text for word in old.words) == expected
    assert [*dict.fromkeys(word for word, _ in old.prompt_words if word.strip())] == expected.split("|")


def test_engine_words_take_precedence_over_white_space() -> None:
    """A token without text is a part of the next token's word."""
    tokens = completion("New", " York", "", "!", " is", numbers=(0, 0, None, 1, 2))
    assert [(word.text, word.token_indexes) for word in words(tokens)] == [
        ("New York", (0, 1)), ("!", (2, 3)), ("is", (4,)),
    ]  # fmt: skip


def test_special_tokens_end_a_word_and_belong_to_none() -> None:
    tokens = completion("<a>", "one", "", "<b>", "two", "<c>")
    assert [(word.text, word.token_indexes) for word in words(tokens)] == [("one", (1, 2)), ("two", (4,))]


def test_a_word_is_complete_when_the_next_begins() -> None:
    grouping = Grouping()
    completed = [[token.index for token in grouping.push(token)] for token in completion(" o", "ne", " two", " ", "x")]
    assert completed == [[], [], [0, 1], [2], []]
    assert [token.index for token in grouping.finish()] == [3, 4]
    assert grouping.finish() == []


@given(st.lists(st.sampled_from(["a", " b", " ", "\n", "c ", "你", "", "<s>", "x y"]), max_size=12))
def test_words_hold_every_written_character_once(pieces: list[str]) -> None:
    tokens = completion(*pieces)
    text = "".join(token.text for token in tokens)
    found = list(words(tokens))
    assert [word.text for word in found] == [text[word.start : word.end] for word in found]
    assert "".join("".join(word.text.split()) for word in found) == "".join(text.split())
    indexes = [index for word in found for index in word.token_indexes]
    assert indexes == sorted(set(indexes))


def test_prompt_words_have_the_offset_of_their_text() -> None:
    text = "  Red fox"
    tokens = prompt((0, 2), (2, 4), (4, 5), (5, 9), text=text)
    assert prompt_words(text, tokens) == (("Red", 2), ("Red", 2), ("Red", 2), ("fox", 6))
    numbered = [replace(token, word=number) for token, number in zip(tokens, (0, 1, 1, 1), strict=True)]
    assert prompt_words(text, numbered) == (("  ", 0), ("Red fox", 2), ("Red fox", 2), ("Red fox", 2))


def test_messages_and_template_tokens_part_words() -> None:
    text = "abcd"
    first, second, third, last = prompt((0, 1), (1, 2), (2, 3), (3, 4), text=text)
    spoken = [replace(first, message=0), replace(second, message=1), replace(third, message=1)]
    assert prompt_words(text, [*spoken, replace(last, role="template")]) == (("a", 0), ("bc", 1), ("bc", 1), ("d", 3))
    assert [is_written(token) for token in (first, replace(first, role="template"), replace(first, special=True))] == [
        True, False, False,
    ]  # fmt: skip


def test_a_special_token_without_text_is_no_part_of_a_character() -> None:
    begin, part, rest = prompt((0, 0), (0, 0), (0, 1), text="日")
    units = list(characters("日", [replace(begin, special=True, text="<s>"), part, rest]))
    assert [(unit.text, unit.token_indexes) for unit in units] == [("<s>", (0,)), ("日", (1, 2))]


@given(st.data())
def test_every_character_is_drawn_once(data: st.DataObject) -> None:
    """For tokens whose starts and ends ascend, as in every valid explanation, units are disjoint and hold each once."""
    length = data.draw(st.integers(0, 8))
    count = data.draw(st.integers(0, 6))
    starts = sorted(data.draw(st.lists(st.integers(0, length), min_size=count, max_size=count)))
    ends = sorted(data.draw(st.lists(st.integers(0, length), min_size=count, max_size=count)))
    spans = [(start, max(start, end)) for start, end in zip(starts, ends, strict=True)]
    text = "abcdefgh"[:length]
    units = list(characters(text, prompt(*spans, text=text)))
    assert [index for unit in units for index in unit.token_indexes] == list(range(count))
    drawn = [position for unit in units for position in range(unit.start, unit.end)]
    assert drawn == sorted(set(drawn))
    assert set(drawn) == {position for start, end in spans for position in range(start, end)}
    assert all(unit.text == text[unit.start : unit.end] for unit in units)
