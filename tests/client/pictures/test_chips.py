"""A prompt as chips: words, places of equal words, and what scores by word stand for."""

from __future__ import annotations

from dataclasses import replace

from client.explanation.conftest import explanation, shared
from gradellm import PromptToken, Source, Token
from gradellm.pictures.chips import canvas, columns_by_token, completion_chip


def test_words_and_tokens() -> None:
    started = explanation().started
    drawn_on = canvas(started)
    assert [(chip.text, chip.columns, chip.num_tokens) for chip in drawn_on.chips] == [
        ("The", (1,), 1), ("cat", (2,), 1), ("sat", (3, 4), 2), ("on a mat", (5,), 1),
    ]  # fmt: skip
    assert (drawn_on.template_columns, drawn_on.num_template_tokens, drawn_on.sink) == (frozenset({0}), 1, None)
    assert [chip.text for chip in canvas(started, "token").chips] == ["The", "cat", "s", "at", "on a mat"]
    for chip in drawn_on.chips:
        assert started.prompt_text[chip.start : chip.end] == chip.text


def test_tokens_that_share_a_character_are_one_chip() -> None:
    assert [(chip.text, chip.columns) for chip in canvas(shared().started, "token").chips] == [
        ("日", (0, 1)), ("本", (2,)), ("x", (3,)),
    ]  # fmt: skip


def test_a_column_of_several_tokens_is_one_chip() -> None:
    started = replace(explanation().started, sources=(Source("cat sat", (2, 3, 4)),))
    drawn_on = canvas(started)
    assert [(chip.text, chip.columns, chip.num_tokens) for chip in drawn_on.chips] == [
        ("The", (), 1), ("cat", (0,), 3), ("sat", (0,), 3), ("on a mat", (), 1),
    ]  # fmt: skip
    assert columns_by_token(started) == {2: [0], 3: [0], 4: [0]}


def test_equal_words_are_told_apart_by_place() -> None:
    def prompt(*segments: str) -> list[str]:
        text = "red red, Red"
        spans = [(0, 3), (3, 8), (8, 12)]
        tokens = tuple(
            PromptToken(i, text[a:b], a, b, "user", 0, segment, False, i)
            for i, ((a, b), segment) in enumerate(zip(spans, segments, strict=True))
        )
        started = replace(explanation().started, prompt_text=text, prompt_tokens=tokens)
        return [chip.place for chip in canvas(started).chips]

    assert prompt("", "", "") == ["1 of 3", "2 of 3", "3 of 3"]
    assert prompt("a", "b", "c") == ["a", "b", "c"]
    assert prompt("a", "a", "b") == ["1 of 3", "2 of 3", "3 of 3"]


def test_a_word_after_a_line_break_is_of_its_own_segment() -> None:
    tokens = tuple(
        PromptToken(i, text, a, b, "user", 0, segment, False, word)
        for i, (text, a, b, segment, word) in enumerate(
            [("One.", 0, 4, "first", 0), ("\n\n", 4, 6, "", 1), ("Two.", 6, 10, "second", 1)]
        )
    )
    started = replace(explanation().started, prompt_text="One.\n\nTwo.", prompt_tokens=tokens)
    assert [(chip.text, chip.segment) for chip in canvas(started).chips] == [("One.", "first"), ("Two.", "second")]


def test_words_of_the_completion() -> None:
    token = Token(0, 5, " wo", 0, 3, -1.0, (), False, 7)
    chip = completion_chip([token, replace(token, index=1, text="rd", start=3, end=5, source_index=8)])
    assert chip is not None
    assert (chip.text, chip.start, chip.end, chip.columns, chip.num_tokens) == ("word", 1, 5, (7, 8), 2)
    assert completion_chip([replace(token, source_index=None)]) is None
    assert completion_chip([replace(token, text=" ")]) is None
