"""Documents before a question: their places, and those that cannot be told apart."""

from __future__ import annotations

import pytest

from gradellm import InvalidRequestError
from gradellm.wire.documents import with_documents


def test_documents_stand_below_their_names_at_their_places() -> None:
    documents = {"menu": " Soup is five coins.\n", "日": "開店は九時。"}
    text, places = with_documents("What?", documents.items(), "documents")
    assert text == "menu:\nSoup is five coins.\n\n日:\n開店は九時。\n\nWhat?"
    assert {name: text[first:end] for name, (first, end) in places.items()} == {
        "menu": "Soup is five coins.",
        "日": "開店は九時。",
    }


def test_without_documents_a_question_stays_as_it_is() -> None:
    assert with_documents("What?", [], "documents") == ("What?", {})


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([("", "a")], "one has no name"),
        ([("a", "x"), ("a", "y")], "a names two documents"),
        ([("a", " \n")], "a is empty"),
    ],
)
def test_documents_that_cannot_be_named_are_refused(documents: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"field: {words}"):
        with_documents("What?", documents, "field")
