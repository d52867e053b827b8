"""Masked pictures: which sentence has the colour, and that no word of the prompt is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradellm.pictures.chips import Canvas, Chip
from gradellm.pictures.picture import Picture, paint
from gradellm_bench.study.masked import bars, most_colour, save, sentence_of
from gradellm_bench.study.retrieval import RetrievalChat, retrieval_chat, right_answer

CHAT = retrieval_chat("boxes", 3, num_facts=4)
OFFSET = 10  # of the user's text in the prompt's


def picture_of(chat: RetrievalChat, strongest: str) -> Picture:
    """All words score 1, and one of them 9; a word of the template has the largest score."""
    chips, start = [Chip("<user>", 0, 6, (0,), 1, 0, "template", "")], 0
    for column, word in enumerate(chat.text.split(), 1):
        start = chat.text.index(word, start)
        chips.append(Chip(word, OFFSET + start, OFFSET + start + len(word), (column,), 1, 0, "user", ""))
        start += len(word)
    scores = {chip.columns[0]: 9.0 if chip.text.strip(".") == strongest else 1.0 for chip in chips}
    return paint(Canvas(tuple(chips), frozenset(), 1, None), scores | {0: 0.0})


def test_the_sentence_with_the_most_colour() -> None:
    for index, answer in enumerate(CHAT.candidates):
        assert most_colour(picture_of(CHAT, answer), CHAT, OFFSET) == index


def test_each_sentence_has_its_letter_once_and_lines_are_short() -> None:
    found = list(bars(picture_of(CHAT, CHAT.answer), CHAT, OFFSET))
    assert [bar.letter for bar in found if bar.letter] == ["A", "B", "C", "D"]
    assert len(found) == len(CHAT.text.split())
    assert max(bar.x + bar.length for bar in found) <= 72
    assert [bar.length for bar in found if bar.strength] == [len(f"{CHAT.answer}.")]


def test_words_outside_of_the_facts_belong_to_none() -> None:
    question = Chip("What", OFFSET + CHAT.text.index("\n\n") + 2, 0, (9,), 1, 0, "user", "")
    assert sentence_of(question, CHAT.sentences, OFFSET) is None
    first = CHAT.sentences[1][0]
    chip = Chip("x", OFFSET + first, OFFSET + first + 1, (1,), 1, 0, "user", "")
    assert sentence_of(chip, CHAT.sentences, OFFSET) == 1


@pytest.mark.parametrize(
    ("text", "is_right"), [("It is {right}.", True), ("{wrong}, not {right}", False), ("I do not know.", False)]
)
def test_an_answer_counts_if_it_names_the_right_word_first(text: str, *, is_right: bool) -> None:
    wrong = next(candidate for candidate in CHAT.candidates if candidate != CHAT.answer)
    text = text.format(right=CHAT.answer.capitalize(), wrong=wrong)
    span = right_answer(text, CHAT.answer, CHAT.candidates)
    assert (span is not None) == is_right
    if span is not None:
        assert text[slice(*span)] == CHAT.answer.capitalize()


def test_a_picture_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save(picture_of(CHAT, CHAT.answer), CHAT, OFFSET, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
