"""Names that no document has: of a sentence, of an explanation, and leads by arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.explanation.cited import asked
from gradellm import Explanation
from gradellm.explanation.citations import CONTRAST, citations, default_threshold
from gradellm.explanation.naming.missing import SHARE_OF_THRESHOLD, AskedNames, name_leads, question_text


@pytest.mark.parametrize(
    ("names", "drawn_on", "sentence", "missing"),
    [
        (["Leo"], [], "Leo's box is red.", ["Leo"]),
        (["Leo"], [], "It is red.", []),
        (["Leo"], ["Leo"], "It is red.", ["Leo"]),
        (["Anna", "Leo"], ["Anna", "Leo"], "It is red.", []),  # one of them stands in a document
        (["Anna", "Leo"], ["Anna"], "Leo's box is red.", ["Leo"]),
        (["Anna", "Leo"], ["Leo"], "Anna's box is red.", []),
        (["Leo", "Zoe"], [], "Leo and Zoe have none.", ["Leo", "Zoe"]),
        (["Report"], [], "The Report says so.", []),  # a document's own name
        ([], [], "Anna's box is red.", []),
    ],
)
def test_missing_names(names: list[str], drawn_on: list[str], sentence: str, missing: list[str]) -> None:
    asked = AskedNames(names, ["report", "Anna's box is red."], drawn_on)
    assert asked.missing(sentence) == tuple(missing)


def test_leads_are_those_of_the_equation() -> None:
    excesses = {0: {1: 2.0, 2: 1.0, 3: 3.0}, 4: {1: 0.5, 3: 4.0}, 5: {2: 1.5}, 6: {}}
    names = {1: "Leo", 2: "Anna", 7: "Zoe"}
    assert name_leads(names, excesses, 0.5) == {"Leo": 0.5, "Anna": 1.5, "Zoe": 0.0}
    assert name_leads({1: "Leo", 3: "Leo"}, excesses, 0.5) == {"Leo": 4.0}
    assert name_leads({}, excesses, 0.5) == {}


def test_the_question_is_the_last_message_without_documents() -> None:
    loaded = asked("What does Leo eat?", {})
    assert question_text(loaded).split() == ["What", "does", "Leo", "eat?"]
    assert question_text(loaded)[-10:] == loaded.prompt_text[-10:]
    earlier = [replace(token, message=1) if token.text == "eat? " else token for token in loaded.prompt_tokens]
    later = Explanation(replace(loaded.started, prompt_tokens=tuple(earlier)), loaded.tokens, loaded.attributions, None)
    assert question_text(later).split() == ["eat?"]


def test_sentences_about_names_that_no_document_has_cite_none() -> None:
    before = citations(asked("What is the soup of today?", {}))
    loaded = asked("What is the soup of Leo ?", {1: {"Leo": 9.0}})
    soup, hours, day = citations(loaded)
    assert [[d.name for d in s.documents] for s in before] == [["menu"], ["hours"], []]
    assert [s.documents for s in (soup, hours, day)] == [(), (), ()]
    assert [s.missing_names for s in (soup, hours, day)] == [("Leo",)] * 3
    assert [[d.name for d in s.uncited] for s in (soup, hours, day)] == [["menu"], ["hours"], []]
    strong = citations(loaded, require_names=False)
    assert [s.documents for s in strong] == [s.uncited for s in (soup, hours, day)]
    assert not any(s.missing_names or s.uncited for s in strong)


@pytest.mark.parametrize(
    "question", ["What is the soup of Menu ?", "What is the soup of Wenn ?", "Leo asks: what is it?"]
)
def test_other_names_change_nothing(question: str) -> None:
    names = {word: 0.2 for word in question.split() if word in ("Menu", "Wenn", "Leo")}
    found = citations(asked(question, {1: names}))
    assert [[d.name for d in s.documents] for s in found] == [["menu"], ["hours"], []]
    assert not any(s.missing_names for s in found)


def test_a_name_counts_from_its_share_of_the_threshold_on() -> None:
    weak, strong = (asked("What is the soup of Leo ?", {12: {"Leo": score}}) for score in (0.15, 0.5))
    assert not any(s.missing_names for s in citations(weak))
    assert all(s.missing_names == ("Leo",) for s in citations(strong))
    assert SHARE_OF_THRESHOLD * default_threshold(weak) > 0
    assert 0 < CONTRAST < 1
