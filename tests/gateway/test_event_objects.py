"""Pictures and citations beside events: those of the collected explanation, and refusals that name the field."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.conftest import explanation as without_end
from gradellm import Attribution, Event, Explanation, InvalidRequestError
from gradellm.models import Finished, Source, Timings, Usage
from gradellm.pictures.chips import canvas
from gradellm.pictures.document import canvas_document, picture_document
from gradellm.serialization import to_plain
from gradellm_gateway.event_objects import EventObjects, Extras, citation_objects


def explanation() -> Explanation:
    """The explanation of a stream that has ended."""
    loaded = without_end()
    finished = Finished("end_of_text", "", Usage(6, 4, 3, 0), Timings(0.0, 0.1, 0.2, 0.3))
    return Explanation(loaded.started, loaded.tokens, loaded.attributions, finished)


def objects(loaded: Explanation, extras: Extras) -> list[dict[str, Any]]:
    made = EventObjects(extras)
    return [made.of(event) for event in loaded.events()]


def test_without_extras_an_object_is_the_event() -> None:
    for event, made in zip(explanation().events(), objects(explanation(), Extras()), strict=True):
        assert made == {name: value for name, value in to_plain(event).items() if value is not None}
        assert len(made) == 1


def test_pictures_are_those_of_the_collected_explanation() -> None:
    loaded = explanation()
    made = objects(loaded, Extras(pictures=True))
    assert json.loads(json.dumps(made)) == made
    assert made[0]["canvas"] == canvas_document(loaded.started, canvas(loaded.started))
    words = [word for each in made for word in each.get("words", ()) if word["text"]]
    assert [word["text"] for word in words] == [word.text for word in loaded.words]
    for word, own in zip(words, loaded.words, strict=True):
        assert (word["tokens"][0], word["tokens"][1] - 1) == (own.token_indexes[0], own.token_indexes[-1])
        if word["picture"] is not None:
            assert word["picture"] == picture_document(loaded.picture(own))
    assert made[-1]["answer"] == picture_document(loaded.picture())


def test_with_pictures_scores_have_the_digits_of_the_wires_floats() -> None:
    scores = tuple(
        struct.unpack("f", struct.pack("f", score))[0] for score in (1 / 3, 1e-30, -2 / 7, 0.0, 1.0, 123456789)
    )
    event = Event(attribution=Attribution(0, scores, (), 1, None))
    sent = EventObjects(Extras(pictures=True)).of(event)["attribution"]["scores"]
    assert [struct.pack("f", score) for score in sent] == [struct.pack("f", score) for score in scores]
    assert max(len(json.dumps(score)) for score in sent) <= len("-0.123456789e-30")
    assert EventObjects(Extras()).of(event)["attribution"]["scores"] == list(scores)


def test_citations_come_with_the_last_event() -> None:
    loaded = explanation()
    made = objects(loaded, Extras(citations=True))
    assert [each for each in made[:-1] if "citations" in each] == []
    citations = made[-1]["citations"]
    assert [each["text"] for each in citations] == [each.text for each in loaded.citations()]
    assert citations == citation_objects(loaded)
    documents = [document for each in citations for document in each["documents"]]
    assert not documents or max(document["strength_of_strongest"] for document in documents) == 1


def test_an_answer_without_attribution_has_no_citations() -> None:
    loaded = explanation()
    assert citation_objects(Explanation(loaded.started, loaded.tokens, (), loaded.finished)) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pictures": 1}, "pictures"),
        ({"citations": "true"}, "citations"),
        ({"citations": True}, "citations"),
        ({"citations": True, "segments": {}}, "citations"),
        ({"pictures": True, "attribution": None}, "pictures"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        Extras.of(fields, "gradellm.{}")
    assert error.value.violations[0].field == f"gradellm.{field}"


def test_extras_are_off_by_default() -> None:
    assert Extras.of({"pictures": None, "citations": False, "attribution": None}) == Extras()
    assert Extras.of({"pictures": True, "citations": True, "segments": {"a": [0, 1]}}) == Extras(True, True)


def test_documents_that_cannot_be_cited_are_refused_before_the_answer() -> None:
    """Two documents that share the only word."""
    started = explanation().started
    tokens = [replace(token, segment=("a", "b")[index % 2]) for index, token in enumerate(started.prompt_tokens)]
    shared = replace(started, prompt_tokens=tuple(tokens), sources=(Source("all", tuple(range(len(tokens)))),))
    with pytest.raises(InvalidRequestError, match="citations: no score belongs to one document alone"):
        EventObjects(Extras(citations=True)).of(Event(started=shared))
