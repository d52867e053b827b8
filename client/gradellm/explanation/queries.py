"""Questions that people put to an explanation, answered from its scores: pure functions.

A selection says of which part of the completion: nothing for all of it, a word, a token's place, a range of places, or
a text that stands in it. Its attribution is the sum of its tokens' rows, as a word's is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from gradellm.errors import InvalidExplanationError
from gradellm.explanation.retention import retention_probs
from gradellm.explanation.words import Word, characters
from gradellm.explanation.words import is_written as token_is_written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution, PromptToken

__all__ = [
    "By",
    "Part",
    "Selection",
    "attribution_of",
    "led_to",
    "parts",
    "retention",
    "selected",
    "top_sources",
]

Selection = Word | int | range | str | None
By = Literal["source", "word", "segment", "role", "message"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what was scored, with what it contributed."""

    label: str
    """The token, the word, the segment's name, the role, or the message's number."""
    score: float
    """The sum of its columns' scores."""
    share: float
    """Of the sum of all scores' magnitudes, 0 to 1."""
    columns: tuple[int, ...]
    """Which columns of `sources` it is made of."""


def selected(explanation: Explanation, selection: Selection) -> tuple[int, ...]:
    """Return the places in the completion of the tokens that are meant, explained or not.

    Raises InvalidExplanationError where there is no such part.
    """
    tokens = explanation.tokens
    present = range(tokens[0].index, tokens[-1].index + 1) if tokens else range(0)
    if selection is None:
        return tuple(present)
    if isinstance(selection, Word):
        wanted: tuple[int, ...] = selection.token_indexes
    elif isinstance(selection, str):
        wanted = _places_of(explanation, selection)
    else:
        wanted = (selection,) if isinstance(selection, int) else tuple(selection)
    if not wanted or not all(place in present for place in wanted):
        held = f"{present[0]} to {present[-1]}" if present else "none"
        raise InvalidExplanationError(f"the completion has no tokens {selection!r}; its tokens are {held}")
    return wanted


def _places_of(explanation: Explanation, text: str) -> tuple[int, ...]:
    offset = explanation.tokens[0].start if explanation.tokens else 0
    start = explanation.text.find(text)
    if start < 0 or not text:
        raise InvalidExplanationError(f"the completion does not contain {text!r}")
    start, end = offset + start, offset + start + len(text)
    return tuple(token.index for token in explanation.tokens if token.start < end and token.end > start)


def attribution_of(explanation: Explanation, selection: Selection = None) -> tuple[float, ...]:
    """Return a score for each of `sources`: the sum over the selection's tokens. 0 where none has one.

    Raises InvalidExplanationError where nothing of the selection was explained.
    """
    sums = [0.0] * len(explanation.sources)
    rows = [row for place in selected(explanation, selection) if (row := explanation.row(place)) is not None]
    if not rows:
        raise InvalidExplanationError("nothing of that was explained")
    for row in rows:
        for column, score in row.by_column().items():
            sums[column] += score
    return tuple(sums)


def parts(explanation: Explanation, by: By = "segment", selection: Selection = None) -> tuple[Part, ...]:
    """Return what each part contributed to a selection, in the order of the text.

    By "source" one of `sources`, those of tokens that share a character as one; by "word", "segment", "role" or
    "message" of the prompt. What lies in none is called "" (or "template", by role), and the completion so far, where
    it is scored, "completion".

    Raises InvalidExplanationError for another `by`, or where scores were asked for more coarsely than that.
    """
    if by not in get_args(By):
        raise InvalidExplanationError(f"by: must be one of {', '.join(get_args(By))}, not {by!r}")
    scores = attribution_of(explanation, selection)
    total = math.fsum(abs(score) for score in scores if math.isfinite(score))
    labels: dict[str | tuple[str, int], list[int]] = {}
    for column in range(len(scores)):
        labels.setdefault(label_of(explanation, column, by), []).append(column)
    made = []
    for label, columns in labels.items():
        score = total_of(scores[column] for column in columns)
        name = label if isinstance(label, str) else label[0]
        made.append(Part(name, score, abs(score) / total if total else 0.0, tuple(columns)))
    return tuple(made)


def total_of(scores: Iterable[float]) -> float:
    """Return the exact sum; of infinities of both signs, which have none, NaN."""
    try:
        return math.fsum(scores)
    except ValueError:
        return math.nan


def label_of(explanation: Explanation, column: int, by: By) -> str | tuple[str, int]:
    """What a column is counted under; with a number beside it where labels may be alike."""
    source = explanation.sources[column]
    if by == "source":
        place = explanation.drawn_places[column]
        return explanation.drawn[place][0], place
    if column >= explanation.num_prompt_columns:
        return "completion"
    if by == "word":
        words = {explanation.prompt_words[index] for index in source.token_indexes}
        return words.pop() if len(words) == 1 else (source.label, -1 - column)  # a segment
    found = {_of(explanation.prompt_tokens[index], by) for index in source.token_indexes}
    if len(found) > 1:
        raise InvalidExplanationError(f"by: {source.label!r} has parts in several; explain with resolution='token'")
    return found.pop() if found else ""


def _of(token: PromptToken, by: By) -> str:
    if by == "segment":
        return token.segment
    if by == "message":
        return "" if token.message is None else str(token.message)
    return token.role or ""


def drawn(explanation: Explanation) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what is drawn as one: its text, and its columns in `sources`.

    Those are the columns one by one, but for tokens that share a character: together, they have its text once.
    """
    sources, num_prompt_columns = explanation.sources, explanation.num_prompt_columns
    if explanation.started.sources:  # words and segments share none
        yield from ((source.label, (column,)) for column, source in enumerate(sources))
        return
    for part in characters(explanation.prompt_text, explanation.prompt_tokens):
        yield part.text, part.token_indexes
    without_text = {token.index for token in explanation.tokens if not (token.text or token.special)}
    parts: tuple[int, ...] = ()
    for column in range(num_prompt_columns, len(sources)):
        parts += (column,)
        places = sources[column].completion_indexes
        if not places or not without_text.issuperset(places) or column == len(sources) - 1:
            yield sources[column].label, parts
            parts = ()


def top_sources(
    explanation: Explanation, selection: Selection = None, *, n: int = 5, by: By = "word", written: bool = True
) -> tuple[Part, ...]:
    """Return the parts that contributed most, by magnitude, the largest first.

    With `written`, the default, only those of what people wrote: no template, no special tokens.
    """
    found = parts(explanation, by, selection)
    if written:
        found = tuple(part for part in found if any(is_written(explanation, column) for column in part.columns))
    return tuple(sorted(found, key=lambda part: -abs(part.score))[:n])


def is_written(explanation: Explanation, column: int) -> bool:
    """Whether a column stands for something that a person or the model wrote, not for the template."""
    if column >= explanation.num_prompt_columns:
        return True
    return any(token_is_written(explanation.prompt_tokens[i]) for i in explanation.sources[column].token_indexes)


def led_to(explanation: Explanation, columns: Sequence[int] | int | str) -> tuple[tuple[Word, float], ...]:
    """Return what a source led to: each word of the completion with the score that the source has for it.

    `columns` are places in `sources`, one of them, or the name of a segment.

    Raises InvalidExplanationError where there is no such source.
    """
    if isinstance(columns, str):
        wanted = [i for i in range(explanation.num_prompt_columns) if columns == label_of(explanation, i, "segment")]
        if not wanted or not columns:
            raise InvalidExplanationError(f"the prompt has no segment {columns!r}")
    else:
        wanted = [columns] if isinstance(columns, int) else list(columns)
    if not wanted or not all(0 <= column < len(explanation.sources) for column in wanted):
        raise InvalidExplanationError(f"there are {len(explanation.sources)} sources, and none {columns!r}")
    led = []
    for word in explanation.words:
        rows = [row for place in word.token_indexes if (row := explanation.row(place)) is not None]
        led.append((word, total_of(score for row in rows for score in _scores_of(row, wanted))))
    return tuple(led)


def _scores_of(row: Attribution, columns: Sequence[int]) -> list[float]:
    """The scores that a row has for some columns: without reading all of it, where it has every column."""
    if row.source_indexes:
        by_column = row.by_column()
        return [by_column[column] for column in columns if column in by_column]
    return [row.scores[column] for column in columns if column < len(row.scores)]


def retention(
    explanation: Explanation, pi: float, selection: Selection = None
) -> tuple[tuple[PromptToken, float], ...]:
    """Return with what probability pi-Soft metrics keep each token of the user's own text: the paper's figures 3 to 6.

    Raises InvalidExplanationError where scores are not one a token, or pi is not between 0 and 1.
    """
    if explanation.started.sources:
        raise InvalidExplanationError("retention needs one score a token: explain with resolution='token'")
    scores = attribution_of(explanation, selection)
    own = [i for i, token in enumerate(explanation.prompt_tokens) if token.role == "user" and not token.special]
    probs = retention_probs([scores[i] for i in own], pi)
    return tuple((explanation.prompt_tokens[i], prob) for i, prob in zip(own, probs, strict=True))
