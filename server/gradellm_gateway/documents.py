"""Documents of a chat: texts in its messages, which the answer can cite by name or URL.

A request names them in `gradellm.documents`, and they become segments of the prompt. Citations of them are given in the
forms that front ends know: OpenAI's `url_citation` annotations, and Open WebUI's `source` events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gradellm import InvalidRequestError
from gradellm_gateway.fields import boolean, list_, object_, text, truncated

__all__ = ["DOCUMENT_FIELDS", "CitedDocuments", "Span", "source_event", "with_documents"]

Span = tuple[int, int, int]
"""A part of the messages: the message, and the first code point and one past the last in its content."""
DOCUMENT_FIELDS = frozenset({"documents", "annotations"})
"""Names in a request's `gradellm` object that `with_documents` reads."""
_FIELDS = ("name", "text", "url")


@dataclass(frozen=True)
class CitedDocuments:
    """What is known of the documents that a request names.

    Attributes:
        urls: by the documents' names.
        has_annotations: whether citations of them are annotations of the message, too.
    """

    urls: Mapping[str, str]
    has_annotations: bool = True

    def url(self, name: str) -> str:
        """Return a document's URL; one of the scheme `gradellm` if the request gave none."""
        return self.urls.get(name) or f"gradellm:document/{quote(name, safe='')}"

    def annotations(
        self, citations: Sequence[Mapping[str, Any]], offset: int, length: int | None = None
    ) -> list[dict[str, Any]]:
        """Return citations as annotations of a chat message, OpenAI's: one for each document of each sentence.

        `offset` is the message's first code point in the completion, which may begin with forced tokens or reasoning;
        `length` is the message's, None for all of the completion. Ends are exclusive. There are none if the request
        leaves them out.
        """
        made: list[dict[str, Any]] = []
        if not self.has_annotations:
            return made
        for citation in citations:
            start, end = max(0, citation["start"] - offset), citation["end"] - offset
            end = end if length is None else min(end, length)
            for document in citation["documents"] if start < end else ():
                passage = document["passage"]
                cited = {"start_index": start, "end_index": end, "url": self.url(document["name"])}
                cited |= {"title": document["name"], "quote": passage and passage["text"]}
                made.append({"type": "url_citation", "url_citation": cited})
        return made

    def sources(self, citations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the cited documents as Open WebUI's sources: one each, with the passages that were drawn from.

        `external` is Open WebUI's mark of sources from elsewhere: without it, a URL is shown in place of the name.
        """
        passages: dict[str, list[str]] = {}
        for document in (document for citation in citations for document in citation["documents"]):
            found = passages.setdefault(document["name"], [])
            passage = document["passage"]["text"] if document["passage"] else document["name"]
            if passage not in found:
                found.append(passage)
        return [
            {
                "source": {"name": name, "url": self.url(name)},
                "document": texts,
                "metadata": [{"source": self.url(name), "name": name, "external": True} for _ in texts],
            }
            for name, texts in passages.items()
        ]


def source_event(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chunk has for a cited document: Open WebUI shows `event` below the message."""
    return {"gradellm": {"source": source}, "event": {"type": "source", "data": source}}


def with_documents(
    own: Mapping[str, Any], contents: Sequence[str], path: str = "gradellm.{}"
) -> tuple[dict[str, Any], CitedDocuments]:
    """Return a request's `gradellm` object with its documents as segments, to be cited, and what is known of them.

    `contents` are the texts of the messages, `path` that of a field, with {} for its name. Raises InvalidRequestError
    for documents that are malformed, or whose text is in no message.
    """
    documents, has_annotations = own.get("documents"), own.get("annotations")
    if has_annotations is not None:
        boolean(path.format("annotations"), has_annotations)
        if documents is None and not own.get("citations"):
            raise InvalidRequestError.of(path.format("annotations"), "needs documents or citations; leave it out")
    own = {name: value for name, value in own.items() if name not in DOCUMENT_FIELDS}
    if documents is None:
        return own, CitedDocuments({}, has_annotations is not False)
    list_(path.format("documents"), documents)
    segments = dict(own.get("segments") or {})
    urls: dict[str, str] = {}
    taken: list[Span] = []
    for index, document in enumerate(documents):
        where = f"{path.format('documents')}[{index}]"
        _check(where, document)
        name = document["name"]
        if name in segments:
            raise InvalidRequestError.of(f"{where}.name", f"{truncated(name)} names another document or segment, too")
        span = _find(document["text"], contents, taken)
        if span is None:
            raise InvalidRequestError.of(
                f"{where}.text", "is not in the messages; give the text as it stands in one of them"
            )
        taken.append(span)
        segments[name] = span
        urls[name] = document.get("url") or ""
    if segments:
        own["segments"] = segments
        own.setdefault("citations", True)
    return own, CitedDocuments(urls, has_annotations is not False)


def _check(path: str, document: object) -> None:
    object_(path, document)
    fields = document if isinstance(document, Mapping) else {}
    for name, value in fields.items():
        if name not in _FIELDS:
            raise InvalidRequestError.of(f"{path}.{truncated(name)}", f"is not known; there are {', '.join(_FIELDS)}")
        if value is not None or name != "url":
            text(f"{path}.{name}", value)
    for name in ("name", "text"):
        if not fields.get(name):
            raise InvalidRequestError.of(f"{path}.{name}", "is missing or empty")


def _find(document: str, contents: Sequence[str], taken: Sequence[Span]) -> Span | None:
    """Return the first place of a document's text that no other document has."""
    for message, content in enumerate(contents):
        start = content.find(document)
        while start >= 0:
            end = start + len(document)
            if not any(other == message and start < last and first < end for other, first, last in taken):
                return message, start, end
            start = content.find(document, start + 1)
    return None
