"""Citations: for each sentence of an answer, the documents of the prompt that it was drawn from. Pure functions.

A document is a named segment of the prompt. Rows t are the explained tokens of the answer, columns p the sources of the
prompt without its template, n[p] their tokens, and x[t, p] the scores, negative ones set to 0, divided by the Euclidean
norm of their row.

    b[t, p]   = max(n[p] * median over p' of x[t, p'] / n[p'], median over t' of x[t', p])
    e[t, p]   = x[t, p] * log(x[t, p] / b[t, p]), 0 where x < b
    peak      = max over the columns p of a document of e[t, p]
    lead      = max(0, peak - CONTRAST * the largest peak of another document)
    strength  = mean of the TOP_TOKENS largest leads of a sentence's tokens

The first median is what a token has from anywhere, by the column's length; the second what the whole answer has from a
column: some, such as those of the first document, have a high score for every token. Both are the lower of two middle
values; a single row has no second one. A row's scale cancels out, and the length of the prompt does nearly.

A sentence about names that no document has cites none: `naming.missing`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidExplanationError
from gradellm.explanation.naming.missing import asked_names
from gradellm.explanation.queries import is_written
from gradellm.explanation.sentences import Sentence, sentences
from gradellm.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution, Resolution

__all__ = ["Citation", "CitedDocument", "Passage", "citations", "contributions"]

Row = dict[int, float]
"""Values by column."""
CONTRAST = 0.5
TOP_TOKENS = 3
FLOOR = 1e-3  # of b, so that the logarithm is finite where most scores are 0
Form = tuple[str | None, str | None, str | None, str | None]
"""Of Grad-ELLM: loosening, magnitude, rectify and gradient."""
_DEFAULT: Mapping[Resolution, float] = {"token": 1.08, "word": 0.92, "segment": 0.16}
THRESHOLDS: Mapping[Form, Mapping[Resolution, float]] = {
    ("none", "head_abs", "none", "relevance"): _DEFAULT,
    ("none", "signed_sum", "per_head", "relevance"): {"token": 1.54, "word": 1.26, "segment": 0.22},
    ("none", "knockout", "per_head", "relevance"): {"token": 1.2, "word": 1.08, "segment": 0.2},
    ("none", "knockout", "none", "relevance"): {"token": 0.72, "word": 0.62, "segment": 0.1},
    ("none", "knockout", "per_head", "true"): {"token": 0.78, "word": 0.62, "segment": 0.1},
    ("none", "knockout", "none", "true"): {"token": 0.52, "word": 0.44, "segment": 0.06},
    # Of few chats:
    ("none", "signed_sum", "per_layer", "true"): {"token": 1.22, "word": 1.24, "segment": 0.18},
    ("none", "signed_sum", "per_head", "true"): {"token": 1.16, "word": 1.04, "segment": 0.1},
    ("none", "head_abs", "none", "true"): {"token": 0.76, "word": 0.62, "segment": 0.1},
    ("min_max", "signed_sum", "per_layer", "true"): {"token": 0.1, "word": 0.08, "segment": 0.04},
}
"""The least strength of a cited document, by form and resolution, chosen on "boxes" chats of the study of citations,
`python -m gradellm_bench.study citations-report`. Other methods and forms, which the study lacks, have the first's."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The sentence of a document with the largest score, the evidence for a citation."""

    text: str
    start: int
    """Its first code point in the document, which begins at its first character that is no white space."""
    end: int
    """One past its last code point."""


@dataclass(frozen=True, slots=True)
class CitedDocument:
    """A document that a sentence of the answer was drawn from."""

    name: str
    """The segment's name."""
    strength: float
    """How far its sources stand out for the sentence's tokens, in nats; a cited document has at least the threshold."""
    share: float
    """Its part of the strengths of all documents for this sentence, 0 to 1."""
    passage: Passage | None
    """None at resolution segment, which has one score for the whole document."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence of the answer with the documents that it was drawn from."""

    text: str
    start: int
    """Its first code point in the completion's text."""
    end: int
    """One past its last code point."""
    documents: tuple[CitedDocument, ...]
    """The strongest first. Empty for a sentence that no document stands out for, one about names that no document has,
    and one without attribution."""
    explained_tokens: int
    """Number of its tokens that have an attribution; 0 if nothing is known of its sources."""
    tokens: int
    """Number of its tokens."""
    missing_names: tuple[str, ...] = ()
    """Names of the question that the sentence is about, if no document has one of them: none answers the question."""
    uncited: tuple[CitedDocument, ...] = ()
    """With missing names: the documents that the sentence was drawn from all the same, the strongest first."""

    def to_dict(self) -> dict[str, Any]:
        """Return dicts, lists, texts and numbers, for JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a document contributed to a sentence."""

    strength: float
    by_column: Row
    """For each column the sum of e over the sentence's tokens, where it is above 0."""


def citations(
    explanation: Explanation, *, threshold: float | None = None, require_names: bool = True
) -> tuple[Citation, ...]:
    """Return a citation for each sentence of the answer, in order.

    `threshold` is the least strength of a cited document, above 0; by default that of the explanation's settings.
    `require_names=False` also cites documents for a sentence about names that no document has.

    Raises InvalidExplanationError for a prompt without segments, an answer without attribution, or another threshold.
    """
    if threshold is not None and not threshold > 0:
        raise InvalidExplanationError(f"threshold: must be above 0, not {threshold:g}")
    documents = document_columns(explanation)
    if not explanation.attributions:
        raise InvalidExplanationError("no token of the answer was explained: ask for an attribution to cite documents")
    sizes = {
        column: len(explanation.sources[column].token_indexes)
        for column in range(explanation.num_prompt_columns)
        if is_written(explanation, column)
    }
    excesses = row_excesses({row.token_index: _scores(row, sizes) for row in explanation.attributions}, sizes)
    usual = default_threshold(explanation)
    least = usual if threshold is None else threshold
    names = asked_names(explanation, excesses, usual, CONTRAST) if require_names else None
    found = sentences(explanation.text)
    offset = explanation.tokens[0].start if explanation.tokens else 0
    spans = [(token.start - offset, token.end - offset) for token in explanation.tokens]
    cited = []
    for sentence, members in zip(found, overlapping(found, spans), strict=True):
        indexes = [explanation.tokens[member].index for member in members]
        explained = [excesses[index] for index in indexes if index in excesses]
        drawn_from = _cited(explanation, documents, contributions(explained, documents), least) if explained else ()
        missing = names.missing(sentence.text) if names is not None and explained else ()
        documents_of = ((), drawn_from) if missing else (drawn_from, ())
        start, end = sentence.start + offset, sentence.end + offset
        counts = len(explained), len(indexes)
        cited.append(Citation(sentence.text, start, end, documents_of[0], *counts, missing, documents_of[1]))
    return tuple(cited)


def overlapping(found: Sequence[Sentence], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return for each sentence the indexes of the spans (start, end) that share a character with it."""
    ends = [sentence.end for sentence in found]
    members: list[list[int]] = [[] for _ in found]
    for index, (start, end) in enumerate(spans):
        for number in range(bisect_right(ends, start), len(found)):
            if found[number].start >= end:
                break
            members[number].append(index)
    return members


def document_columns(explanation: Explanation) -> dict[str, tuple[int, ...]]:
    """Return for each document its columns in `sources`, in the order of the prompt.

    A column with tokens of two documents, such as a word across their border, belongs to neither.

    Raises InvalidExplanationError for a prompt without segments, and for segments without a column of their own.
    """
    found: dict[str, list[int]] = {}
    for column, source in enumerate(explanation.sources[: explanation.num_prompt_columns]):
        tokens = [explanation.prompt_tokens[index] for index in source.token_indexes]
        names = {token.segment for token in tokens if not token.is_definition} - {""}
        if len(names) == 1:
            found.setdefault(names.pop(), []).append(column)
    if not found and any(token.segment and not token.is_definition for token in explanation.prompt_tokens):
        raise InvalidExplanationError(
            "no score belongs to one document alone: each word that has one spans several; explain with "
            "resolution='token'"
        )
    if not found:
        raise InvalidExplanationError(
            "the prompt has no segments, so that there is no document to cite: name the range of each with "
            "segments={name: (start, end)}, in a chat (message, start, end)"
        )
    return {name: tuple(columns) for name, columns in found.items()}


def default_threshold(explanation: Explanation) -> float:
    """Return the least strength of a cited document for an explanation's settings."""
    settings = explanation.provenance.attribution
    if settings is None:
        return _DEFAULT["segment" if explanation.started.sources else "token"]
    gradient = settings.gradient or "true"  # which is all that older servers have
    form = (settings.loosening, settings.magnitude, settings.rectify, gradient)
    return THRESHOLDS.get(form, _DEFAULT)[settings.resolution or "token"]


def row_excesses(rows: Mapping[int, Mapping[int, float]], sizes: Mapping[int, int]) -> dict[int, Row]:
    """Return e of the module's equations: for each token the columns where it is above 0.

    `rows` are scores by token and column, `sizes` the number of tokens of each column; other columns are ignored.
    """
    scaled = {token: _scaled(row, sizes) for token, row in rows.items()}
    usual = [median_low(scores) for scores in zip(*scaled.values(), strict=True)]
    if len(scaled) == 1:
        usual = [0.0] * len(sizes)
    excesses: dict[int, Row] = {}
    for token, scores in scaled.items():
        density = median_low([x / n for x, n in zip(scores, sizes.values(), strict=True)]) if scores else 0.0
        row = excesses[token] = {}
        for (column, size), x, b in zip(sizes.items(), scores, usual, strict=True):
            base = max(size * density, b, FLOOR)
            if x > base:
                row[column] = x * math.log(x / base)
    return excesses


def _scores(row: Attribution, columns: Iterable[int]) -> Row:
    """Return a row's scores by column; those that top_k_sources left out have the smallest magnitude that was sent."""
    found = row.by_column()
    missing = min(map(abs, row.scores), default=0.0) if row.source_indexes else 0.0
    return {column: found.get(column, missing) for column in columns}


def _scaled(row: Mapping[int, float], columns: Iterable[int]) -> list[float]:
    """Return scores divided by their Euclidean norm; 0 for those that are negative, missing or not finite."""
    scores = [row.get(column, 0.0) for column in columns]
    scores = [score if 0 < score < math.inf else 0.0 for score in scores]
    largest = max(scores, default=0.0)
    if not largest:
        return scores
    scores = [score / largest for score in scores]  # whose squares are finite
    norm = math.hypot(*scores)
    return [score / norm for score in scores]


def contributions(excesses: Sequence[Row], documents: Mapping[str, Sequence[int]]) -> dict[str, Contribution]:
    """Return what each document contributed to a sentence, from e of the sentence's tokens."""
    peaks = [
        {name: max((row.get(column, 0.0) for column in columns), default=0.0) for name, columns in documents.items()}
        for row in excesses
    ]
    found = {}
    for name, columns in documents.items():
        leads = sorted((_lead(peak, name) for peak in peaks), reverse=True)[:TOP_TOKENS]
        sums = {column: math.fsum(row.get(column, 0.0) for row in excesses) for column in columns}
        strength = math.fsum(leads) / len(leads) if leads else 0.0
        found[name] = Contribution(strength, {column: value for column, value in sums.items() if value})
    return found


def _lead(peaks: Mapping[str, float], name: str) -> float:
    other = max((peak for document, peak in peaks.items() if document != name), default=0.0)
    return max(0.0, peaks[name] - CONTRAST * other)


def _cited(
    explanation: Explanation,
    documents: Mapping[str, Sequence[int]],
    found: Mapping[str, Contribution],
    least: float,
) -> tuple[CitedDocument, ...]:
    """Return the documents that are strong enough, the strongest first."""
    total = math.fsum(contribution.strength for contribution in found.values())
    cited = [
        CitedDocument(name, each.strength, each.strength / total, _passage(explanation, documents[name], each))
        for name, each in found.items()
        if each.strength >= least
    ]
    return tuple(sorted(cited, key=lambda document: -document.strength))


def _passage(explanation: Explanation, columns: Sequence[int], contribution: Contribution) -> Passage | None:
    """Return the document's sentence with the largest sum of e."""
    if len(columns) == 1:
        return None
    spans = [_span(explanation, column) for column in columns]
    start, end = min(start for start, _ in spans), max(end for _, end in spans)
    document = explanation.prompt_text[start:end]
    start += len(document) - len(document.lstrip())
    found = sentences(document.strip())
    if not found:
        return None
    members = overlapping(found, [(a - start, b - start) for a, b in spans])
    mass = [math.fsum(contribution.by_column.get(columns[i], 0.0) for i in inside) for inside in members]
    best = found[mass.index(max(mass))]
    return Passage(best.text, best.start, best.end)


def _span(explanation: Explanation, column: int) -> tuple[int, int]:
    tokens = [explanation.prompt_tokens[index] for index in explanation.sources[column].token_indexes]
    return min(token.start for token in tokens), max(token.end for token in tokens)
