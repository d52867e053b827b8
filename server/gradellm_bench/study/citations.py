"""How well citations find the documents that answers were drawn from: what is measured of one generated chat.

The chats come from `document_chats`, explanations from a server, and citations from the SDK, as a user gets them. A row
holds strengths, not decisions, so that thresholds are chosen and judged without running the model again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gradellm import Client, Explanation
from gradellm.explanation.citations import Citation, CitedDocument, citations
from gradellm.models import Attribution, Source
from gradellm.wire.keywords import AttributionKeywords
from gradellm_bench.study.document_chats import DocumentChat
from gradellm_bench.study.retrieval import right_answer

_FORMS: Mapping[str, AttributionKeywords] = {
    "paper": {"attribution": "paper"},
    "unloosened": {"attribution": "unloosened"},
    "knockout": {"attribution": "knockout"},
    "knockout_no_sink": {"attribution": "knockout", "sink": "exclude"},
    "knockout_positive_no_sink": {"attribution": "knockout", "rectify": "per_head", "sink": "exclude"},
    "head_abs_no_sink": {
        "attribution": "unloosened",
        "rectify": "none",
        "magnitude": "head_abs",
        "sink": "exclude",
    },
    "positive_no_sink": {"attribution": "unloosened", "rectify": "per_head", "sink": "exclude"},
}
METHODS: Mapping[str, AttributionKeywords] = {
    **_FORMS,
    **{f"relevance_{name}": {**form, "gradient": "relevance"} for name, form in _FORMS.items() if "no_sink" in name},
}
"""By the names that `candidates` has for them."""
RESOLUTIONS = ("token", "word", "segment")
MAX_ANSWER_TOKENS = 24
NO_DOCUMENT = ""
MIN_CONTENT_LETTERS = 5
EVERYTHING = 1e-9  # a threshold that all strengths above 0 exceed


def explained(client: Client, chat: DocumentChat, methods: Mapping[str, AttributionKeywords]) -> dict[str, Explanation]:
    """The chat's answer explained by each method; empty where the model's answer is not the document's."""
    segments = {name: (0, *span) for name, span in chat.documents.items()}
    given: dict[str, Any] = {"messages": [("user", chat.text)], "segments": segments}
    prompt, before, stop = None, "", list[str]()
    if not client.server_info().model.has_chat_template:  # a raw prompt, whose answer is a line
        prompt, before, stop = f"{chat.text}\n\nAnswer:", " ", ["\n"]
        given = {"segments": chat.documents}
    answer: dict[str, Any] = {"completion": f"{before}{chat.completion}"}
    if not chat.completion:
        generated = client.explain(prompt, **given, max_new_tokens=MAX_ANSWER_TOKENS, stop=stop, attribution=None)
        if not generated.text.strip() or (chat.expected and not is_right(chat, generated.text)):
            return {}
        answer = {"completion_ids": [token.id for token in generated.tokens if token.text or not stop]}
    answer |= {"delivery": "chunked", "chunk_size": 64}
    return {name: client.attribute(prompt, **{**given, **answer, **keywords}) for name, keywords in methods.items()}


def is_right(chat: DocumentChat, answer: str) -> bool:
    """Whether the first of the documents' answers that the model names is the expected one."""
    return right_answer(answer, chat.expected[0].word, chat.candidates) is not None


def judged(chat: DocumentChat, explanations: Mapping[str, Explanation]) -> dict[str, Any]:
    """What a row has beside the chat's name.

    Returns:
        sentences: of each judged one `expected`, the document's name or NO_DOCUMENT, and whether it `repeats` a
            document's words.
        strengths: by resolution and method, for each judged sentence the strength of each document.
        missing_names: by resolution and method, for each judged sentence whether it is about names that no document
            has, so that none is cited. Rows of older runs lack it.
        passages: by method, for each sentence with an expected document whether the passage is the fact; None where
            the document has no passage.
    """
    names = list(chat.documents)
    row: dict[str, Any] = {"sentences": [], "strengths": {}, "missing_names": {}, "passages": {}}
    for method, explanation in explanations.items():
        cited = citations(explanation, threshold=EVERYTHING)
        expected = dict(_expected(chat, cited))
        row["sentences"] = [
            {"expected": name, "repeats": repeats(chat, cited[index].text)} for index, name in expected.items()
        ]
        row["passages"][method] = [
            _is_fact(chat, cited[index], name) for index, name in expected.items() if name != NO_DOCUMENT
        ]
        for resolution in RESOLUTIONS:
            coarse = citations(coarser(explanation, resolution), threshold=EVERYTHING)
            strengths = [{d.name: d.strength for d in drawn_from(coarse[index])} for index in expected]
            row["strengths"].setdefault(resolution, {})[method] = [
                [round(found.get(name, 0.0), 3) for name in names] for found in strengths
            ]
            row["missing_names"].setdefault(resolution, {})[method] = [
                bool(coarse[index].missing_names) for index in expected
            ]
    return row


def drawn_from(citation: Citation) -> tuple[CitedDocument, ...]:
    """The documents that a sentence was drawn from, whether or not they have the names that it is about."""
    return citation.documents or citation.uncited


def _expected(chat: DocumentChat, cited: tuple[Citation, ...]) -> Iterator[tuple[int, str]]:
    """Indexes of the judged sentences, with the name of the expected document or NO_DOCUMENT."""
    if chat.asks in ("one", "instructed"):
        for index, sentence in enumerate(cited):
            if _names(chat.expected[0].word, sentence.text):
                yield index, chat.expected[0].document
                return  # later sentences may be drawn from anywhere
        return
    documents = [answer.document for answer in chat.expected]
    for index in range(len(cited)):
        yield index, documents[index] if index < len(documents) else NO_DOCUMENT


def _names(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def repeats(chat: DocumentChat, sentence: str) -> bool:
    """Whether a sentence has a word of a document that the question lacks: one of five letters, or an answer.

    A small model that is asked what no document says often answers with words of a document. Such a sentence is drawn
    from the document, though it is wrong.
    """
    documents = " ".join(chat.text[start:end] for start, end in chat.documents.values())
    question = chat.text[max(end for _, end in chat.documents.values()) :]
    shared = _words(sentence) & _words(documents) - _words(question)
    return any(len(word) >= MIN_CONTENT_LETTERS or word in map(str.lower, chat.candidates) for word in shared)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def _is_fact(chat: DocumentChat, citation: Citation, name: str) -> bool | None:
    """Whether the passage of a document is the sentence that states its fact."""
    passage = next((document.passage for document in drawn_from(citation) if document.name == name), None)
    if passage is None:
        return None
    start, end = next(answer.fact for answer in chat.expected if answer.document == name)
    return passage.text == chat.text[start:end]


def coarser(explanation: Explanation, resolution: str) -> Explanation:
    """The explanation that a server sends at another resolution, from one with a score a token."""
    if resolution == "token":
        return explanation
    groups: dict[object, list[int]] = {}
    for index, token in enumerate(explanation.prompt_tokens):
        key = token.word if resolution == "word" else (token.segment or token.role, bool(token.segment))
        groups.setdefault(key, []).append(index)
    sources = tuple(Source(str(key), tuple(indexes)) for key, indexes in groups.items())
    rows = tuple(
        Attribution(row.token_index, tuple(sum(row.scores[i] for i in g) for g in groups.values()), (), 0, None)
        for row in explanation.attributions
    )
    provenance = explanation.provenance
    if provenance.attribution is not None:
        provenance = replace(provenance, attribution=replace(provenance.attribution, resolution=resolution))  # type: ignore[arg-type]
    started = replace(explanation.started, sources=sources, provenance=provenance)
    return Explanation(started, explanation.tokens, rows, explanation.finished)
