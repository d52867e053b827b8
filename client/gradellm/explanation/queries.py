"""Queries on the scores of an explanation. Pure functions.

A selection is a part of the completion: None for all of it, a word, a token index, a range of token indexes, a text in
it (its first place), or a regular expression (all its matches). Its attribution is the sum of its tokens' rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from gradellm.errors import InvalidExplanationError, InvalidRequestError
from gradellm.explanation.reasoning import REASONING
from gradellm.explanation.retention import retention_probs
from gradellm.explanation.words import Word, characters
from gradellm.explanation.words import is_written as token_is_written
from gradellm.pictures.chips import canvas, completion_chip
from gradellm.pictures.picture import paint
from gradellm.wire.token_selection import found_spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution, PromptToken
    from gradellm.pictures.picture import Picture, Scale, WordScore

__all__ = [
    "By",
    "Part",
    "Selection",
    "attribution_of",
    "led_to",
    "parts",
    "picture",
    "retention",
    "selected_tokens",
    "top_sources",
]

COMPLETION = "completion"
"""The label of generated tokens."""
_GENERATED = -1  # tells reasoning from a prompt's segment of that name

Selection = Word | int | range | str | re.Pattern[str] | None
By = Literal["source", "word", "segment", "role", "message"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the prompt or the completion, and its contribution."""

    label: str
    """The token, the word, the segment's name, the role, or the message's index."""
    score: float
    """The sum of the scores of its columns."""
    share: float
    """Its magnitude divided by the sum of the magnitudes of all scores, 0 to 1."""
    columns: tuple[int, ...]
    """Its columns in `sources`."""


def selected_tokens(explanation: Explanation, selection: Selection) -> tuple[int, ...]:
    """Return the token indexes of a selection, with and without attribution.

    Raises InvalidExplanationError for a selection outside the completion.
    """
    tokens = explanation.tokens
    present = range(tokens[0].index, tokens[-1].index + 1) if tokens else range(0)
    if selection is None:
        return tuple(present)
    if isinstance(selection, Word):
        indexes: tuple[int, ...] = selection.token_indexes
    elif isinstance(selection, str | re.Pattern):
        indexes = _indexes_of(explanation, selection)
    else:
        indexes = (selection,) if isinstance(selection, int) else tuple(selection)
    if not indexes or not all(index in present for index in indexes):
        existing = f"{present[0]} to {present[-1]}" if present else "none"
        raise InvalidExplanationError(f"the completion has no tokens {selection!r}; its tokens are {existing}")
    return indexes


def _indexes_of(explanation: Explanation, wanted: str | re.Pattern[str]) -> tuple[int, ...]:
    """Return the tokens of a text's first place, or of all matches, with all parts of their characters."""
    try:
        spans = [*found_spans("selection", wanted, explanation.text)]
    except InvalidRequestError as error:
        shown = wanted if isinstance(wanted, str) else wanted.pattern
        raise InvalidExplanationError(f"the completion does not contain {shown!r}") from error
    offset = explanation.tokens[0].start
    indexes: list[int] = []
    parts: list[int] = []  # tokens without text before a token: parts of its first character
    for token in explanation.tokens:
        if any(token.start < offset + end and token.end > offset + start for start, end in spans):
            indexes += [*parts, token.index]
        parts = [*parts, token.index] if not (token.text or token.special) else []
    return tuple(indexes)


def attribution_of(explanation: Explanation, selection: Selection = None) -> tuple[float, ...]:
    """Return a score for each of `sources`: the sum over the selection's tokens, 0 without scores.

    Raises InvalidExplanationError if no token of the selection has an attribution.
    """
    sums = [0.0] * len(explanation.sources)
    rows = [row for index in selected_tokens(explanation, selection) if (row := explanation.row(index)) is not None]
    if not rows:
        raise InvalidExplanationError("no token of the selection was explained")
    for row in rows:
        for column, score in row.by_column().items():
            sums[column] += score
    return tuple(sums)


def parts(explanation: Explanation, by: By = "segment", selection: Selection = None) -> tuple[Part, ...]:
    """Return the contribution of each part to a selection, in the order of the text.

    By "source" a part is one of `sources`, or several whose tokens share a character; otherwise a "word", "segment",
    "role" or "message" of the prompt. Tokens outside of these have the label "" (by role "template"), and the
    completion so far, if it is scored, has the label "completion"; by "segment", reasoning in it (`<think>` blocks) has
    the label "reasoning".

    Raises InvalidExplanationError for another `by`, or if the resolution of the scores is too coarse for it.
    """
    scores = attribution_of(explanation, selection)
    total = math.fsum(abs(score) for score in scores if math.isfinite(score))
    found = []
    for label, columns in groups(explanation, by, range(len(scores))):
        score = total_of(scores[column] for column in columns)
        found.append(Part(label, score, abs(score) / total if total else 0.0, columns))
    return tuple(found)


def groups(explanation: Explanation, by: By, columns: Iterable[int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the label and the columns of each part that has some of `columns`, in order.

    Raises InvalidExplanationError for another `by`, or if the resolution of the scores is too coarse for it.
    """
    if by not in get_args(By):
        raise InvalidExplanationError(f"by: must be one of {', '.join(get_args(By))}, not {by!r}")
    labels: dict[str | tuple[str, int], list[int]] = {}
    for column in columns:
        labels.setdefault(label_of(explanation, column, by), []).append(column)
    return [(label if isinstance(label, str) else label[0], tuple(found)) for label, found in labels.items()]


def total_of(scores: Iterable[float]) -> float:
    """Return the exactly rounded sum; NaN for infinities of both signs."""
    try:
        return math.fsum(scores)
    except ValueError:
        return math.nan


def label_of(explanation: Explanation, column: int, by: By) -> str | tuple[str, int]:
    """Return the label of a column's part, with a number if labels may repeat."""
    source = explanation.sources[column]
    if by == "source":
        index = explanation.drawn_places[column]
        return explanation.drawn[index][0], index
    if column >= explanation.num_prompt_columns:
        indexes = source.completion_indexes
        is_reasoning = by == "segment" and indexes != () and explanation.reasoning.issuperset(indexes)
        return (REASONING, _GENERATED) if is_reasoning else COMPLETION
    if by == "word":
        words = {explanation.prompt_words[index] for index in source.token_indexes}
        return words.pop() if len(words) == 1 else (source.label, -1 - column)  # a segment
    labels = {_token_label(explanation.prompt_tokens[index], by) for index in source.token_indexes}
    if len(labels) > 1:
        raise InvalidExplanationError(f"by: {source.label!r} spans several parts; explain with resolution='token'")
    return labels.pop() if labels else ""


def _token_label(token: PromptToken, by: By) -> str:
    if by == "segment":
        return token.segment
    if by == "message":
        return "" if token.message is None else str(token.message)
    return token.role or ""


def drawn(explanation: Explanation) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the text and the columns in `sources` of each drawn unit: a source, or several that share a character."""
    sources, num_prompt_columns = explanation.sources, explanation.num_prompt_columns
    if explanation.started.sources:  # words and segments share no characters
        yield from ((source.label, (column,)) for column, source in enumerate(sources))
        return
    for part in characters(explanation.prompt_text, explanation.prompt_tokens):
        yield part.text, part.token_indexes
    without_text = {token.index for token in explanation.tokens if not (token.text or token.special)}
    parts: tuple[int, ...] = ()
    for column in range(num_prompt_columns, len(sources)):
        parts += (column,)
        indexes = sources[column].completion_indexes
        if not indexes or not without_text.issuperset(indexes) or column == len(sources) - 1:
            yield sources[column].label, parts
            parts = ()


def top_sources(
    explanation: Explanation, selection: Selection = None, *, n: int = 5, by: By = "word", written: bool = True
) -> tuple[Part, ...]:
    """Return the n parts with the largest contributions, sorted by magnitude.

    With `written`, the default, without template and special tokens.
    """
    found = parts(explanation, by, selection)
    if written:
        found = tuple(part for part in found if any(is_written(explanation, column) for column in part.columns))
    return tuple(sorted(found, key=lambda part: -abs(part.score))[:n])


def is_written(explanation: Explanation, column: int) -> bool:
    """Whether a column belongs to a message or the completion, not to the template."""
    if column >= explanation.num_prompt_columns:
        return True
    return any(token_is_written(explanation.prompt_tokens[i]) for i in explanation.sources[column].token_indexes)


def led_to(explanation: Explanation, columns: Sequence[int] | int | str) -> tuple[tuple[Word, float], ...]:
    """Return each word of the completion with the score that a source has for it.

    `columns` is an index in `sources`, several indexes, or the name of a segment.

    Raises InvalidExplanationError for an unknown source.
    """
    if isinstance(columns, str):
        indexes = [i for i in range(explanation.num_prompt_columns) if columns == label_of(explanation, i, "segment")]
        if not indexes or not columns:
            raise InvalidExplanationError(f"the prompt has no segment {columns!r}")
    else:
        indexes = [columns] if isinstance(columns, int) else list(columns)
    if not indexes or not all(0 <= column < len(explanation.sources) for column in indexes):
        raise InvalidExplanationError(f"there is no source {columns!r}; there are {len(explanation.sources)} sources")
    scores = []
    for word in explanation.words:
        rows = [row for index in word.token_indexes if (row := explanation.row(index)) is not None]
        scores.append((word, total_of(score for row in rows for score in _scores_of(row, indexes))))
    return tuple(scores)


def _scores_of(row: Attribution, columns: Sequence[int]) -> list[float]:
    """Return a row's scores of some columns; a dense row is indexed directly."""
    if row.source_indexes:
        by_column = row.by_column()
        return [by_column[column] for column in columns if column in by_column]
    return [row.scores[column] for column in columns if column < len(row.scores)]


def retention(
    explanation: Explanation, pi: float, selection: Selection = None
) -> tuple[tuple[PromptToken, float], ...]:
    """Return the keep probability of each token of the user's text in pi-Soft metrics (the paper's figures 3 to 6).

    Raises InvalidExplanationError if there is not one score per token, or pi is not between 0 and 1.
    """
    if explanation.started.sources:
        raise InvalidExplanationError("retention needs one score per token: explain with resolution='token'")
    scores = attribution_of(explanation, selection)
    unscored = explanation.started.unscored_tokens
    user = [
        i
        for i, token in enumerate(explanation.prompt_tokens)
        if token.role == "user" and not token.special and i not in unscored
    ]
    probs = retention_probs([scores[i] for i in user], pi)
    return tuple((explanation.prompt_tokens[i], prob) for i, prob in zip(user, probs, strict=True))


def picture(
    explanation: Explanation, selection: Selection = None, *, scale: Scale, word_score: WordScore | None, pi: float
) -> Picture:
    """Return what a picture of a selection shows; words of the completion before it are a part of it if scored."""
    indexes = selected_tokens(explanation, selection)
    scores = dict(enumerate(attribution_of(explanation, selection)))
    first = explanation.tokens[0].index
    words = (word.token_indexes for word in explanation.words if word.token_indexes[0] < indexes[-1])
    chips = (completion_chip([explanation.tokens[index - first] for index in word]) for word in words)
    earlier = tuple(chip for chip in chips if chip is not None)
    return paint(canvas(explanation.started), scores, earlier, scale=scale, word_score=word_score, pi=pi)
