"""Documents of a request become segments; citations of them have the forms that front ends know."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.documents import CitedDocuments, with_documents

CONTENTS = ["Be brief.", "A red ball.\n\nA red ball. A blue hat.\n\nWho?"]


def test_documents_are_segments_of_the_messages() -> None:
    documents = [
        {"name": "one", "text": "A red ball."},
        {"name": "two", "text": "A red ball. A blue hat.", "url": "http://x"},
    ]
    own, cited = with_documents({"resolution": "word", "documents": documents}, CONTENTS)
    assert own == {"resolution": "word", "citations": True, "segments": {"one": (1, 0, 11), "two": (1, 13, 36)}}
    assert (cited.url("one"), cited.url("two"), cited.url("a b/c")) == (
        "gradellm:document/one",
        "http://x",
        "gradellm:document/a%20b%2Fc",
    )


def test_the_same_text_twice_is_two_places() -> None:
    documents = [{"name": name, "text": "A red ball."} for name in ("one", "two")]
    own, _ = with_documents({"documents": documents, "citations": False}, CONTENTS)
    assert own["segments"] == {"one": (1, 0, 11), "two": (1, 13, 24)}
    assert own["citations"] is False


@pytest.mark.parametrize(
    ("documents", "param"),
    [
        (3, "gradellm.documents"),
        ([3], "gradellm.documents[0]"),
        ([{"name": "a"}], "gradellm.documents[0].text"),
        ([{"text": "Who?"}], "gradellm.documents[0].name"),
        ([{"name": "", "text": "Who?"}], "gradellm.documents[0].name"),
        ([{"name": "a", "text": 3}], "gradellm.documents[0].text"),
        ([{"name": "a", "text": "Who?", "url": 3}], "gradellm.documents[0].url"),
        ([{"name": "a", "text": "Who?", "uri": "x"}], "gradellm.documents[0].uri"),
        ([{"name": "a", "text": "Who!"}], "gradellm.documents[0].text"),
        ([{"name": "a", "text": "Who?"}, {"name": "b", "text": "Who?"}], "gradellm.documents[1].text"),
        ([{"name": "a", "text": "Who?"}, {"name": "a", "text": "Be"}], "gradellm.documents[1].name"),
    ],
)
def test_documents_that_cannot_be_are_refused(documents: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        with_documents({"documents": documents}, CONTENTS)
    assert raised.value.violations[0].field == param


def test_annotations_can_be_left_out() -> None:
    documents = [{"name": "ball", "text": "A red ball."}]
    found = [citation(0, 4, ("ball", "A red ball."))]
    for asked, is_empty in ((False, True), (True, False), (None, False)):
        own, cited = with_documents({"documents": documents, "annotations": asked}, CONTENTS)
        assert "annotations" not in own
        assert (cited.annotations(found, 0) == []) is is_empty
        assert cited.sources(found) != []
        _, cited = with_documents({"citations": True, "segments": {}, "annotations": asked}, CONTENTS)
        assert (cited.annotations(found, 0) == []) is is_empty


@pytest.mark.parametrize("own", [{"annotations": False}, {"annotations": 0, "documents": []}])
def test_annotations_of_nothing_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        with_documents(own, CONTENTS)
    assert raised.value.violations[0].field == "gradellm.annotations"


def citation(start: int, end: int, *documents: tuple[str, str | None]) -> dict[str, Any]:
    cited = [{"name": name, "passage": text and {"text": text}} for name, text in documents]
    return {"start": start, "end": end, "documents": cited}


def test_annotations_are_ranges_of_the_message() -> None:
    cited = CitedDocuments({"hat": "http://hats"})
    found = [
        citation(0, 4, ("ball", "A red ball.")),
        citation(5, 20, ("hat", None), ("ball", "Red.")),
        citation(30, 31),
    ]
    made = cited.annotations(found, offset=5, length=12)
    assert [each["type"] for each in made] == ["url_citation", "url_citation"]
    assert [each["url_citation"] for each in made] == [
        {"start_index": 0, "end_index": 12, "url": "http://hats", "title": "hat", "quote": None},
        {"start_index": 0, "end_index": 12, "url": "gradellm:document/ball", "title": "ball", "quote": "Red."},
    ]


def test_sources_are_one_for_each_document() -> None:
    found = [
        citation(0, 4, ("ball", "A.")),
        citation(5, 9, ("ball", "B."), ("hat", None)),
        citation(9, 12, ("ball", "A.")),
    ]
    url = "gradellm:document/ball"
    assert CitedDocuments({}).sources(found) == [
        {
            "source": {"name": "ball", "url": url},
            "document": ["A.", "B."],
            "metadata": [{"source": url, "name": "ball", "external": True}] * 2,
        },
        {
            "source": {"name": "hat", "url": "gradellm:document/hat"},
            "document": ["hat"],
            "metadata": [{"source": "gradellm:document/hat", "name": "hat", "external": True}],
        },
    ]
