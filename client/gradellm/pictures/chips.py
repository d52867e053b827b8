"""The units of text that a picture colours: words, or tokens. Pure functions of a prompt's and a completion's tokens.

A chip is a word with its punctuation, a token, or a segment, depending on what is drawn and on what has a score.
Tokens of the chat template have no chip: a picture folds them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from gradellm.explanation.words import characters, is_written, prompt_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradellm.explanation.words import Characters
    from gradellm.models import Started, Token

__all__ = ["Canvas", "Chip", "Unit", "canvas", "columns_by_token", "completion_chip"]

Unit = Literal["word", "token"]
_RESTS_ON_ATTENTION = frozenset({"grad_ellm", "attention", "attention_rollout", "grad_sam"})
_PUNCTUATION = ".,;:!?\"'()[]{}“”‘’«»。、，！？…"


@dataclass(frozen=True, slots=True)
class Chip:
    """A piece of text with one colour."""

    text: str
    """Without surrounding white space, unless it is all there is."""
    start: int
    """Its first code point, in the prompt's or the completion's text."""
    end: int
    """One past its last code point."""
    columns: tuple[int, ...]
    """Its columns of scores; empty where it has none."""
    num_tokens: int
    """The number of tokens whose scores these columns hold."""
    message: int | None
    """The message that it is a part of; None for a raw prompt, and for the completion."""
    role: str
    """The message's role; "completion" for words of the completion."""
    segment: str
    """Its segment's name; empty outside of segments."""
    place: str = ""
    """Tells equal words apart: "2 of 3", or the segment's name; empty for a word that occurs once."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """The prompt as chips, and the tokens that are folded."""

    chips: tuple[Chip, ...]
    """In the order of the text."""
    template_columns: frozenset[int]
    """Columns of template and special tokens."""
    num_template_tokens: int
    sink: int | None
    """The chip of position 0 if its score is that of an attention sink, not of the word: it is hatched, not coloured.
    None where position 0 is of the template, or the method does not rest on attention."""


def canvas(started: Started, unit: Unit = "word") -> Canvas:
    """Divide a prompt into chips. With scores by word or segment, a chip is what has a score."""
    columns = columns_by_token(started)
    by_word = prompt_words(started.prompt_text, started.prompt_tokens)
    groups: list[list[Characters]] = []
    keys: list[object] = []
    template: set[int] = set()
    num_template_tokens = 0
    for part in characters(started.prompt_text, started.prompt_tokens):
        first = part.token_indexes[0]
        if not is_written(started.prompt_tokens[first]):
            template.update(column for index in part.token_indexes for column in columns.get(index, ()))
            num_template_tokens += len(part.token_indexes)
            groups.append([])
            keys.append(None)
            continue
        key: object = first
        if started.sources and columns.get(first):
            key = tuple(columns[first])
        elif unit == "word":
            key = by_word[first]
        key = (started.prompt_tokens[first].message, bool(started.sources and columns.get(first)), key)
        if keys and keys[-1] == key:
            groups[-1].append(part)
        else:
            groups.append([part])
            keys.append(key)
    chips = tuple(_chip(started, columns, group) for group in groups if group)
    written = {column for chip in chips for column in chip.columns}
    return Canvas(
        tuple(_placed(chips)),
        frozenset(template - written),
        num_template_tokens,
        next((index for index, chip in enumerate(chips) if _is_sink(started, columns, chip)), None),
    )


def _chip(started: Started, columns: dict[int, list[int]], group: Sequence[Characters]) -> Chip:
    indexes = [index for part in group for index in part.token_indexes]
    tokens = [started.prompt_tokens[index] for index in indexes]
    token = next((token for token in tokens if token.text.strip()), tokens[0])  # a document begins after a line break
    own = tuple(dict.fromkeys(column for index in indexes for column in columns.get(index, ())))
    text, start = _bare(started.prompt_text[group[0].start : group[-1].end] or group[0].text, group[0].start)
    if started.sources and own:  # a column is several tokens' sum, some of them elsewhere perhaps
        num_tokens = sum(len(started.sources[column].token_indexes) for column in own)
    else:
        num_tokens = len(indexes)
    return Chip(text, start, start + len(text), own, num_tokens, token.message, token.role or "", token.segment)


def _bare(text: str, start: int) -> tuple[str, int]:
    """Return text without white space at its ends, so that words are separate chips, and where it begins."""
    bare = text.strip()
    return (bare, start + len(text) - len(text.lstrip())) if bare else (text, start)


def _is_sink(started: Started, columns: dict[int, list[int]], chip: Chip) -> bool:
    """Whether a chip is the first token, on which heads rest attention that they have no use for."""
    settings = started.provenance.attribution
    if settings is None or chip.num_tokens != 1 or settings.method not in _RESTS_ON_ATTENTION:
        return False
    first = columns.get(0, [])
    return bool(first) and list(chip.columns) == first and is_written(started.prompt_tokens[0])


def _placed(chips: Sequence[Chip]) -> Iterator[Chip]:
    """Yield the chips with a place for those whose word occurs several times."""
    words = [chip.text.strip(_PUNCTUATION).casefold() for chip in chips]
    counts, seen = Counter(words), Counter[str]()
    segments: dict[str, set[str]] = {}
    for chip, word in zip(chips, words, strict=True):
        segments.setdefault(word, set()).add(chip.segment)
    for chip, word in zip(chips, words, strict=True):
        seen[word] += 1
        if not word or counts[word] == 1:
            yield chip
        elif len(segments[word] - {""}) == counts[word]:  # a document each
            yield replace(chip, place=chip.segment)
        else:
            yield replace(chip, place=f"{seen[word]} of {counts[word]}")


def completion_chip(tokens: Sequence[Token]) -> Chip | None:
    """Return a word of the completion as a chip; None without text, or without a column of scores."""
    columns = dict.fromkeys(token.source_index for token in tokens if token.source_index is not None)
    whole = "".join(token.text for token in tokens)
    if not columns or not whole.strip():
        return None
    text, start = _bare(whole, tokens[0].start)
    return Chip(text, start, start + len(text), tuple(columns), len(tokens), None, "completion", "")


def columns_by_token(started: Started) -> dict[int, list[int]]:
    """Return the columns of scores of each prompt token, by its index."""
    if not started.sources:
        return {index: [index] for index in range(len(started.prompt_tokens))}
    columns: dict[int, list[int]] = {}
    for column, source in enumerate(started.sources):
        for index in source.token_indexes:
            columns.setdefault(index, []).append(column)
    return columns
