"""Tables of the study of citations: precision, recall and "no document", with 95 % intervals.

Precision and recall are over sentences that a document answers, "no document" is the share of other sentences without a
citation. Kinds of questions have a table of their own, with and without the rule of missing names. Thresholds are
chosen on the chats of one generator and judged on those of another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any, get_args

from gradellm_bench.capacity.report import markdown
from gradellm_bench.study.citations import NO_DOCUMENT, RESOLUTIONS
from gradellm_bench.study.document_chats import MAIN_ASKS, Asks
from gradellm_bench.study.results import read

CHOSEN_ON, JUDGED_ON = "boxes", "notes"
GRID = tuple(round(0.02 * n, 2) for n in range(1, 101))
TOLERANCE = 0.02
Z = 1.959964  # of a normal distribution at 95 %


Key = tuple[str, str, str]  # model, method, resolution


@dataclass(frozen=True)
class JudgedSentence:
    """A sentence of an answer, and the strengths of the documents for it.

    Attributes:
        generator: of its chat.
        asks: of its chat.
        expected: index of the document that it repeats; None for none.
        repeats: whether it has a word of a document that the question lacks.
        strengths: of each document.
        has_missing_names: whether it is about names that no document has, so that none is cited.
    """

    generator: str
    asks: str
    expected: int | None
    repeats: bool
    strengths: tuple[float, ...]
    has_missing_names: bool = False

    def cited(self, threshold: float) -> list[int]:
        """Indexes of the cited documents."""
        if self.has_missing_names:
            return []
        return [index for index, strength in enumerate(self.strengths) if strength >= threshold]


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.count / self.of if self.of else math.nan

    def __str__(self) -> str:
        if not self.of:
            return ""
        low, high = wilson(self.count, self.of)
        return f"{self.value:.2f} ({low:.2f} to {high:.2f})"


def wilson(count: int, of: int) -> tuple[float, float]:
    """Wilson's interval of a share, at 95 %."""
    share = count / of
    centre = share + Z**2 / (2 * of)
    half = Z * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    return max(0.0, (centre - half) / (1 + Z**2 / of)), min(1.0, (centre + half) / (1 + Z**2 / of))


def load(folder: Path) -> dict[Key, list[JudgedSentence]]:
    """The judged sentences of all files of a folder, by model, method and resolution."""
    found: dict[Key, list[JudgedSentence]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        first, *rows = read(path)
        for row in rows:
            for resolution, methods in row.get("strengths", {}).items():
                for method, strengths in methods.items():
                    key = (first["settings"]["model"], method, resolution)
                    missing = row.get("missing_names", {}).get(resolution, {}).get(method, [False] * len(strengths))
                    found.setdefault(key, []).extend(_sentences(row, strengths, missing))
    return found


def _sentences(
    row: Mapping[str, Any], strengths: Sequence[Sequence[float]], missing: Sequence[bool]
) -> Iterator[JudgedSentence]:
    for sentence, values, has_missing in zip(row["sentences"], strengths, missing, strict=True):
        name = sentence["expected"]
        expected = None if name == NO_DOCUMENT else row["documents"].index(name)
        yield JudgedSentence(row["generator"], row["asks"], expected, sentence["repeats"], tuple(values), has_missing)


def precision(sentences: Sequence[JudgedSentence], threshold: float) -> Share:
    """The share of citations that are right, of sentences that a document answers."""
    cited = [
        index == sentence.expected
        for sentence in sentences
        if sentence.expected is not None
        for index in sentence.cited(threshold)
    ]
    return Share(sum(cited), len(cited))


def recall(sentences: Sequence[JudgedSentence], threshold: float) -> Share:
    """The share of sentences that a document answers whose document is cited."""
    found = [s.expected in s.cited(threshold) for s in sentences if s.expected is not None]
    return Share(sum(found), len(found))


def no_document(sentences: Sequence[JudgedSentence], threshold: float, *, repeats: bool = False) -> Share:
    """The share of sentences without a citation, of those that no document answers.

    With `repeats` of those that have a document's words, which a citation is right for, in a way; else of the others.
    """
    silent = [not s.cited(threshold) for s in sentences if s.expected is None and s.repeats == repeats]
    return Share(sum(silent), len(silent))


def unanswered(sentences: Sequence[JudgedSentence], threshold: float, *, by_strength: bool = False) -> Share:
    """The share of sentences without a citation, of all sentences that no document answers.

    With `by_strength` without the rule of missing names.
    """
    asked = [replace(s, has_missing_names=s.has_missing_names and not by_strength) for s in sentences]
    silent = [not s.cited(threshold) for s in asked if s.expected is None]
    return Share(sum(silent), len(silent))


def best_threshold(sentences: Sequence[JudgedSentence]) -> float:
    """The middle of the thresholds with the largest minimum of precision, recall and "no document".

    Thresholds within TOLERANCE of the largest count as equal, so that the choice does not hang on single sentences.
    """
    least = {threshold: _least_share(sentences, threshold) for threshold in GRID}
    best = [threshold for threshold, share in least.items() if share >= max(least.values()) - TOLERANCE]
    return median_low(best)


def _least_share(sentences: Sequence[JudgedSentence], threshold: float) -> float:
    shares = [measure(sentences, threshold).value for measure in (precision, recall, no_document)]
    return min(0.0 if math.isnan(share) else share for share in shares)


def chosen_thresholds(data: Mapping[Key, list[JudgedSentence]]) -> dict[tuple[str, str], float]:
    """For each method and resolution the threshold that is best on all models' chats of the first generator."""
    pooled: dict[tuple[str, str], list[JudgedSentence]] = {}
    for (_, method, resolution), sentences in data.items():
        pooled.setdefault((method, resolution), []).extend(_of(sentences, CHOSEN_ON, MAIN_ASKS))
    return {key: best_threshold(sentences) for key, sentences in pooled.items()}


def table(data: Mapping[Key, list[JudgedSentence]], generator: str = JUDGED_ON) -> str:
    """A row for each resolution, method and model, with the threshold that `chosen_thresholds` has for it."""
    thresholds = chosen_thresholds(data)
    header = ["resolution", "method", "threshold", "model", "n", "precision", "recall", "no document", "repeats"]
    lines = []
    order = sorted(data, key=lambda key: (RESOLUTIONS.index(key[2]), key[1], key[0]))
    for model, method, resolution in order:
        judged, threshold = _of(data[model, method, resolution], generator, MAIN_ASKS), thresholds[method, resolution]
        found = recall(judged, threshold)
        shares = (
            precision(judged, threshold),
            found,
            no_document(judged, threshold),
            no_document(judged, threshold, repeats=True),
        )
        lines.append([resolution, method, f"{threshold:.2f}", model, str(found.of), *map(str, shares)])
    return markdown(header, lines)


def kinds_table(data: Mapping[Key, list[JudgedSentence]], generator: str = JUDGED_ON) -> str:
    """For resolution word, a row for each method, model and kind of question."""
    thresholds = chosen_thresholds(data)
    header = ["method", "model", "asks", "n", "precision", "recall", "others", "no document", "by strength alone"]
    lines = []
    for model, method, resolution in sorted(data, key=lambda key: (key[1], key[0])):
        for asks in get_args(Asks):
            judged = _of(data[model, method, resolution], generator, (asks,))
            if resolution != "word" or not judged:
                continue
            threshold = thresholds[method, resolution]
            found, silent = recall(judged, threshold), unanswered(judged, threshold)
            shares = [precision(judged, threshold), found, silent.of, silent]
            shares.append(unanswered(judged, threshold, by_strength=True))
            lines.append([method, model, asks, str(found.of), *map(str, shares)])
    return markdown(header, lines)


def passages(folder: Path) -> dict[tuple[str, str], Share]:
    """By model and method how often the passage of the expected document is the fact, of both generators."""
    found: dict[tuple[str, str], list[bool]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        first, *rows = read(path)
        for row in rows:
            for method, right in row.get("passages", {}).items():
                key = (first["settings"]["model"], method)
                found.setdefault(key, []).extend(fact for fact in right if fact is not None)
    return {key: Share(sum(right), len(right)) for key, right in found.items()}


def _of(sentences: Sequence[JudgedSentence], generator: str, kinds: Collection[str]) -> list[JudgedSentence]:
    return [sentence for sentence in sentences if sentence.generator == generator and sentence.asks in kinds]
