"""Events as JSON objects, with what a request asks for beside them: pictures of the words, citations of the documents.

All numbers of a picture are made here (gradellm.pictures), so that a page draws them as they are.

| event | `pictures` adds | `citations` adds |
| --- | --- | --- |
| started | `canvas`: the prompt as chips | |
| any | `words`: the words that it completes, with their pictures | |
| finished | `answer`: the picture of the whole answer | `citations`: the documents of each sentence |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradellm import Event, Explanation, InvalidExplanationError, InvalidRequestError
from gradellm.explanation.citations import document_columns
from gradellm.explanation.explanation import Collector
from gradellm.models import Started
from gradellm.pictures.chips import Canvas, canvas, completion_chip
from gradellm.pictures.document import canvas_document, picture_document
from gradellm.pictures.picture import paint
from gradellm.pictures.stream import ScoredWord, WordStream
from gradellm.serialization import to_plain
from gradellm_gateway.fields import boolean

__all__ = ["EventObjects", "Extras", "citation_objects"]


@dataclass(frozen=True)
class Extras:
    """What a request asks for beside events.

    Attributes:
        pictures: the picture of each word.
        citations: the documents of each sentence.
    """

    pictures: bool = False
    citations: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any], path: str = "{}") -> Extras:
        """Read and check the fields `pictures` and `citations`, null for false. `path` has {} for a field's name.

        Raises InvalidRequestError for other values, nothing explained, or citations without documents.
        """
        found = {}
        for name in cls.__annotations__:
            value = fields.get(name)
            if value is not None:
                boolean(path.format(name), value)
            found[name] = bool(value)
            if value and "attribution" in fields and fields["attribution"] is None:
                raise InvalidRequestError.of(path.format(name), "needs an attribution: leave out attribution: null")
        if found["citations"] and not fields.get("segments"):
            documents, segments = path.format("documents"), path.format("segments")
            raise InvalidRequestError.of(
                path.format("citations"),
                f"needs documents: give the text of each in {documents}, or name its range in {segments}",
            )
        return cls(**found)


class EventObjects:
    """Makes the JSON objects of one stream's events."""

    def __init__(self, extras: Extras) -> None:
        self._pictures = _WordPictures() if extras.pictures else None
        self._collector = Collector() if extras.citations else None

    def of(self, event: Event) -> dict[str, Any]:
        """Return an event as an object: a key with the event's kind, then keys with what was asked for."""
        if self._pictures is not None:
            event = _shortened(event)
        made = {name: value for name, value in to_plain(event).items() if value is not None}
        if self._pictures is not None:
            made |= self._pictures.of(event)
        if self._collector is not None:
            if any((event.started, event.token, event.attribution, event.finished)):
                self._collector.add(event)
            if event.started is not None:
                _check_documents(self._collector.explanation())
            if event.finished is not None:
                made["citations"] = citation_objects(self._collector.explanation())
        return made


def _check_documents(begun: Explanation) -> None:
    """Refuse documents that cannot be cited before the answer begins, with an InvalidRequestError."""
    try:
        document_columns(begun)
    except InvalidExplanationError as error:
        raise InvalidRequestError.of("citations", str(error)) from error


def _shortened(event: Event) -> Event:
    """Return an event with scores of 9 significant digits, which tell all floats of the wire apart.

    They take two thirds of the bytes of Python's 17 digits: more than is added by pictures.
    """
    row = event.attribution
    if row is None:
        return event
    return Event(attribution=replace(row, scores=tuple(float(f"{score:.9g}") for score in row.scores)))


class _WordPictures:
    """Makes the pictures of one stream's words, and at its end of the whole answer."""

    def __init__(self) -> None:
        self._canvas: Canvas | None = None
        self._words = WordStream()
        self._sums: dict[int, float] = {}  # of the answer so far, by column
        self._last: ScoredWord | None = None

    def of(self, event: Event) -> dict[str, Any]:
        """Return the keys that pictures add to an event."""
        if event.started is not None:
            return {"canvas": self._start(event.started)}
        if self._canvas is None:
            return {}
        drawn_on = self._canvas
        words = [self._word(drawn_on, word) for word in self._words.add(event)]
        words = [word for word in words if word["text"]]
        made: dict[str, Any] = {"words": words} if words else {}
        if event.finished is not None and self._last is not None and self._sums:
            last = self._last.tokens
            own = completion_chip(last) if len(last) > 1 else None  # a source of its own later tokens
            earlier = self._last.earlier if own is None else (*self._last.earlier, own)
            made["answer"] = picture_document(paint(drawn_on, self._sums, earlier))
        return made

    def _start(self, started: Started) -> dict[str, Any]:
        self._canvas = canvas(started)
        self._words = WordStream(started.provenance.attribution)
        return canvas_document(started, self._canvas)

    def _word(self, drawn_on: Canvas, word: ScoredWord) -> dict[str, Any]:
        """Return a word: its text, its tokens, its chip if it is a source of later words, its picture if explained."""
        for column, score in word.scores.items():
            self._sums[column] = self._sums.get(column, 0.0) + score
        self._last = word
        has_chip = completion_chip(word.tokens) is not None
        picture = picture_document(paint(drawn_on, word.scores, word.earlier)) if word.scores else None
        return {
            "text": word.text.strip(),
            "tokens": [word.tokens[0].index, word.tokens[-1].index + 1],
            "chip": len(drawn_on.chips) + len(word.earlier) if has_chip else None,
            "picture": picture,
        }


def citation_objects(explanation: Explanation) -> list[dict[str, Any]]:
    """Return the citations of an answer for JSON; none for an answer of which no token was explained.

    To the fields of `Citation` a document's `strength_of_strongest` is added: its strength divided by the answer's
    largest, 0 to 1.
    """
    if not explanation.attributions:
        return []
    found = [citation.to_dict() for citation in explanation.citations()]
    strongest = max((document["strength"] for each in found for document in each["documents"]), default=0.0)
    for each in found:
        for document in each["documents"]:
            document["strength_of_strongest"] = round(document["strength"] / strongest, 4)
    return found
