"""What the tools return: a few numbers that an agent reads, of an explanation or a report. Shares are from 0 to 1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradellm.evaluation.report import EvaluationReport
    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.words import Word
    from gradellm.models import Metric, Provenance

__all__ = ["CitedAnswer", "ExplainedAnswer", "Faithfulness", "cited", "evaluated", "explained"]

_DIGITS = 3


@dataclass(frozen=True)
class WordSource:
    """A word of the prompt that a word of the answer was drawn from."""

    text: str
    share: float
    """Of all that stands out for the word."""
    document: str
    """Its document's name; empty outside of documents."""
    place: str
    """Which of several equal words, such as "2 of 3"; empty for one that occurs once."""


@dataclass(frozen=True)
class ExplainedWord:
    """A word of the answer with its strongest sources."""

    text: str
    sources: list[WordSource]


@dataclass(frozen=True)
class SentenceSource:
    """A document that a sentence was drawn from."""

    name: str
    share: float
    """Of all documents, for this sentence."""
    passage: str
    """Where in the document; empty where it is not known."""


@dataclass(frozen=True)
class CitedSentence:
    """A sentence of the answer with the documents that it was drawn from; none where no document stands out."""

    text: str
    documents: list[SentenceSource]
    missing_names: list[str]
    """Names of the question that no document has."""


@dataclass(frozen=True)
class CitedAnswer:
    """An answer, sentence by sentence."""

    answer: str
    sentences: list[CitedSentence]
    model: str
    finish_reason: str


@dataclass(frozen=True)
class ExplainedAnswer:
    """An answer with the sources of its words, and of its sentences where documents were given."""

    answer: str
    words: list[ExplainedWord]
    sentences: list[CitedSentence]
    model: str
    attribution: str
    """The preset or method."""
    finish_reason: str


@dataclass(frozen=True)
class Measured:
    """A faithfulness metric of an attribution method, and its difference from random scores (95 %)."""

    method: str
    metric: str
    mean: float
    difference_from_random: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Faithfulness:
    """How far attributions of an answer can be trusted."""

    answer: str
    measured: list[Measured]
    notes: list[str]
    model: str


def explained(explanation: Explanation, *, num_sources: int, words: str | None) -> ExplainedAnswer:
    """Return the words of the answer, or those in which the regular expression `words` is found, with their sources."""
    chosen = [word for word in explanation.words if words is None or re.search(words, word.text)]
    settings = explanation.provenance.attribution
    has_documents = any(token.segment for token in explanation.prompt_tokens)
    return ExplainedAnswer(
        answer=explanation.text,
        words=[ExplainedWord(word.text, _sources(explanation, word, num_sources)) for word in chosen],
        sentences=_sentences(explanation) if has_documents else [],
        model=_model_name(explanation.provenance),
        attribution="" if settings is None else settings.preset or settings.method,
        finish_reason=_finish_reason(explanation),
    )


def cited(explanation: Explanation) -> CitedAnswer:
    """Return the answer's sentences, each with the documents that it was drawn from."""
    return CitedAnswer(
        answer=explanation.text,
        sentences=_sentences(explanation),
        model=_model_name(explanation.provenance),
        finish_reason=_finish_reason(explanation),
    )


def evaluated(report: EvaluationReport) -> Faithfulness:
    """Return the metrics of each method."""
    return Faithfulness(
        answer=report.text,
        measured=[_measured(report, name, metric) for name in report.names for metric in report.metrics],
        notes=list(report.notes),
        model=_model_name(report.provenance),
    )


def _sources(explanation: Explanation, word: Word, num_sources: int) -> list[WordSource]:
    if not any(explanation.row(index) is not None for index in word.token_indexes):
        return []  # it was not explained
    picture = explanation.picture(word)
    supporting = [place for place in picture.top(len(picture.chips)) if picture.strengths[place] > 0]
    chips = [(picture.chips[place], picture.shares[place]) for place in supporting[:num_sources]]
    return [WordSource(chip.text, round(share, _DIGITS), chip.segment, chip.place) for chip, share in chips]


def _sentences(explanation: Explanation) -> list[CitedSentence]:
    return [
        CitedSentence(
            text=sentence.text,
            documents=[
                SentenceSource(
                    document.name,
                    round(document.share, _DIGITS),
                    "" if document.passage is None else document.passage.text,
                )
                for document in sentence.documents
            ],
            missing_names=list(sentence.missing_names),
        )
        for sentence in explanation.citations()
    ]


def _measured(report: EvaluationReport, name: str, metric: Metric) -> Measured:
    mean, difference = round(report.auc(name, metric), _DIGITS), report.difference(name, metric)
    if difference is None:
        return Measured(name, metric, mean, None, None, None)
    low, high = (None if bound is None else round(bound, _DIGITS) for bound in (difference.low, difference.high))
    return Measured(name, metric, mean, round(difference.mean, _DIGITS), low, high)


def _model_name(provenance: Provenance) -> str:
    """Return the model's hub id, or its folder's name, never a path."""
    name = provenance.model.name.rstrip("/")
    return name.rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def _finish_reason(explanation: Explanation) -> str:
    finished = explanation.finished
    return "" if finished is None else finished.reason or "unknown"
