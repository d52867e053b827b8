"""Names that a question asks about and no document has, so that no document answers it. Pure functions.

A model that is asked about a subject of no document often takes a word of a document about another one. The sentence is
drawn from that document, and is wrong. The subject's name tells it from a right one: names are seldom paraphrased.

The question is the prompt's last user message without documents, of that the sentences with a question mark; all, if
none has one.

    repeated = names of the question that the answer's sentence has
    drawn_on = names of the question with lead(name) >= SHARE_OF_THRESHOLD * the least strength of a cited document
    lead     = max over the answer's tokens t of e[t, name] - CONTRAST * the largest e[t, p] of other columns
    about    = repeated, or drawn_on if it is empty
    missing  = about, if no document has one of these names in its text or as its own name; else none

e is that of `citations`.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from gradellm.explanation.naming.names import Name, names_of, stems, words_of
from gradellm.explanation.words import is_written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gradellm.explanation.explanation import Explanation

__all__ = ["AskedNames", "asked_names"]

SHARE_OF_THRESHOLD = 1 / 4
"""Chosen on "boxes" chats of the study of citations. Names in instructions ("Answer in English.") stay below."""
_ASKING_ROLES = ("user", None)  # None: unknown


class AskedNames:
    """The names of a question, with what the documents and the answer have of them.

    Args:
        names: those of the question, in its text's order.
        documents: the documents' texts and names.
        drawn_on: texts of the names that the answer draws on.
    """

    def __init__(self, names: Iterable[str], documents: Iterable[str], drawn_on: Iterable[str] = ()) -> None:
        self._names = tuple(dict.fromkeys(names))
        has = (
            {stem for text in documents for word in words_of(text) for stem in stems(word.text)}
            if self._names
            else set()
        )
        self._stands = {name: not stems(name).isdisjoint(has) for name in self._names}
        drawn = set(drawn_on)
        self._drawn_on = tuple(name for name in self._names if name in drawn)
        self._by_stem: dict[str, list[str]] = {}
        for name in self._names:
            for stem in stems(name):
                self._by_stem.setdefault(stem, []).append(name)

    def missing(self, sentence: str) -> tuple[str, ...]:
        """Return the names that a sentence of the answer is about, if no document has one of them; else none."""
        if not self._names:
            return ()
        found = {
            name for word in words_of(sentence) for stem in stems(word.text) for name in self._by_stem.get(stem, ())
        }
        about = tuple(name for name in self._names if name in found) or self._drawn_on
        return () if any(self._stands[name] for name in about) else about


def asked_names(
    explanation: Explanation, excesses: Mapping[int, Mapping[int, float]], threshold: float, contrast: float
) -> AskedNames:
    """Return the names that the prompt's question asks about.

    Args:
        explanation: of an answer to a prompt with named segments, the documents.
        excesses: e of the module's equations, by token of the answer and column.
        threshold: the least strength of a cited document for the explanation's settings.
        contrast: part of other columns' e that is subtracted.
    """
    names = names_of(question_text(explanation))
    columns = _name_columns(explanation, names)
    leads = name_leads(columns, excesses, contrast)
    drawn_on = [text for text, lead in leads.items() if lead >= SHARE_OF_THRESHOLD * threshold]
    return AskedNames([name.text for name in names], _document_texts(explanation), drawn_on)


def question_text(explanation: Explanation) -> str:
    """Return the prompt's text with line breaks for all but its last user message outside of documents."""
    tokens = explanation.prompt_tokens
    asked = [token for token in tokens if is_written(token) and token.role in _ASKING_ROLES and not token.segment]
    shown = ["\n"] * len(explanation.prompt_text)
    for token in asked:
        if token.message == asked[-1].message:
            shown[token.start : token.end] = explanation.prompt_text[token.start : token.end]
    return "".join(shown)


def _document_texts(explanation: Explanation) -> Iterator[str]:
    """Yield names and texts of the documents."""
    for name, part in groupby(explanation.prompt_tokens, lambda token: token.segment):
        if name:
            members = list(part)
            yield name
            yield explanation.prompt_text[min(token.start for token in members) : max(token.end for token in members)]


def _name_columns(explanation: Explanation, names: Sequence[Name]) -> dict[int, str]:
    """Return the name of each column of scores that has one; a column of several words, such as a segment, has none."""
    by_offset = {offset: name.text for name in names for offset in range(name.start, name.end)}
    found: dict[int, str] = {}
    for column, source in enumerate(explanation.sources[: explanation.num_prompt_columns]):
        tokens = [explanation.prompt_tokens[index] for index in source.token_indexes]
        if not tokens:
            continue
        start, end = min(token.start for token in tokens), max(token.end for token in tokens)
        name = next((by_offset[offset] for offset in range(start, end) if offset in by_offset), None)
        if name is not None and len(explanation.prompt_text[start:end].split()) == 1:
            found[column] = name
    return found


def name_leads(
    names: Mapping[int, str], excesses: Mapping[int, Mapping[int, float]], contrast: float
) -> dict[str, float]:
    """Return the lead of each name, 0 at least.

    Args:
        names: by column.
        excesses: by token of the answer and column.
        contrast: part of other columns' e that is subtracted.
    """
    leads = dict.fromkeys(names.values(), 0.0)
    for row in excesses.values():
        peaks: dict[str | None, float] = {}  # None: of columns without a name
        for column, value in row.items():
            name = names.get(column)
            peaks[name] = max(value, peaks.get(name, 0.0))
        largest, second = [*sorted(peaks.values(), reverse=True)[:2], 0.0, 0.0][:2]
        for name, peak in peaks.items():
            if name is not None:
                leads[name] = max(leads[name], peak - contrast * (second if peak == largest else largest))
    return leads
