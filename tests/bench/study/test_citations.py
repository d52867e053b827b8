"""What is measured of a chat: which sentences are judged, and strengths at each resolution."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.explanation.cited import ANSWER, HIGH, answered, asked
from gradellm.explanation.citations import citations
from gradellm_bench.study.citations import NO_DOCUMENT, RESOLUTIONS, coarser, is_right, judged, repeats
from gradellm_bench.study.document_chats import DocumentChat, Expected

TEXT = answered(HIGH).prompt_text
MENU, HOURS = TEXT.index("Soup"), TEXT.index("We open")
CHAT = DocumentChat(
    "two",
    TEXT,
    {"menu": (MENU, HOURS - 1), "hours": (HOURS, TEXT.index(" What"))},
    (Expected("five", "menu", (MENU, MENU + 19)), Expected("nine", "hours", (HOURS, HOURS + 16))),
    ("five", "nine"),
    "".join(ANSWER),
)


def test_sentences_are_judged_by_the_documents_of_their_answers() -> None:
    row = judged(CHAT, {"paper": answered(HIGH)})
    assert [s["expected"] for s in row["sentences"]] == ["menu", "hours", NO_DOCUMENT]
    assert row["passages"] == {"paper": [True, True]}
    assert row["strengths"].keys() == set(RESOLUTIONS)
    for strengths in row["strengths"].values():
        menu, hours, none = strengths["paper"]
        assert menu[0] > menu[1]
        assert hours[1] > hours[0]
        assert none == [0.0, 0.0]


def test_missing_names_are_told_beside_strengths() -> None:
    before, row = (judged(CHAT, {"paper": asked(q, {1: {"Leo": 9.0}})}) for q in ("Leo", "What has Leo ?"))
    assert before["missing_names"]["token"] == {"paper": [False] * 3}
    assert row["missing_names"]["token"] == {"paper": [True] * 3}
    assert row["passages"] == {"paper": [True, True]}
    menu, hours, _ = row["strengths"]["token"]["paper"]
    assert menu[0] > menu[1]
    assert hours[1] > hours[0]


def test_of_one_question_the_first_sentence_with_the_answer_is_judged() -> None:
    one = replace(CHAT, asks="one", expected=CHAT.expected[:1], completion="")
    assert [s["expected"] for s in judged(one, {"paper": answered(HIGH)})["sentences"]] == ["menu"]
    absent = replace(one, expected=(replace(one.expected[0], word="six"),))
    assert judged(absent, {"paper": answered(HIGH)})["sentences"] == []


@pytest.mark.parametrize(
    ("answer", "right"), [("It costs five.", True), ("Nine or five.", False), ("FIVE", True), ("Six", False)]
)
def test_the_first_named_answer_counts(answer: str, right: bool) -> None:
    assert is_right(CHAT, answer) is right


@pytest.mark.parametrize(
    ("sentence", "expected"), [("Bread!", True), ("It is two.", False), ("It is nine.", True), ("What else?", False)]
)
def test_sentences_that_repeat_words_of_a_document(sentence: str, expected: bool) -> None:
    assert repeats(CHAT, sentence) is expected


def test_coarser_explanations_sum_tokens() -> None:
    loaded = answered(HIGH)
    segments = coarser(loaded, "segment")
    assert [sum(row) for row in segments.scores] == pytest.approx([sum(row) for row in loaded.scores])
    assert {part.label for part in segments.parts("segment")} == {"", "menu", "hours"}
    assert coarser(loaded, "token") is loaded
    cited = [[document.name for document in s.documents] for s in citations(segments)]
    assert cited == [["menu"], ["hours"], []]
