"""Finds reasoning in a completion: the blocks that a model writes before its answer, such as <think>...</think>.

Another model's markers are a row of MARKERS.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from gradellm.parsers.registry import MARKER_TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradellm.models import PromptToken, Token

__all__ = ["MARKERS", "REASONING", "Markers", "completion_pieces", "reasoning_tokens"]

REASONING = "reasoning"
"""The segment's name."""


@dataclass(frozen=True, slots=True)
class Markers:
    """The texts around a block of reasoning."""

    opening: str
    closing: str


MARKERS = (Markers("<think>", "</think>"),)


def reasoning_tokens(
    prompt_text: str,
    prompt_tokens: Sequence[PromptToken],
    tokens: Sequence[Token],
    markers: Sequence[Markers] = MARKERS,
) -> frozenset[int]:
    """Return the indexes of the completion's tokens that belong to reasoning, the markers included.

    A block may be opened by the prompt's end, as some chat templates do, or by forced tokens, which are not sent back.
    A block that is not closed ends with the completion.
    """
    text, spans = completion_pieces(prompt_tokens, tokens, None)
    indexes: set[int] = set()
    for pair in markers:
        is_open = prompt_text.rstrip().endswith(pair.opening) or (
            bool(tokens) and tokens[0].index > 0 and _closes_first(text, pair)
        )
        blocks = deque(_blocks(text, pair, is_open=is_open))
        for index, first, last in spans:  # both ascend
            while blocks and blocks[0][1] <= first:
                blocks.popleft()
            if blocks and last > blocks[0][0]:
                indexes.add(index)
    return frozenset(indexes)


def _blocks(text: str, pair: Markers, *, is_open: bool) -> Iterator[tuple[int, int]]:
    """Yield the blocks of a text as [start, end)."""
    position = 0
    while True:
        start = position if is_open else text.find(pair.opening, position)
        if start < 0:
            return
        inside = start if is_open else start + len(pair.opening)
        closing = text.find(pair.closing, inside)
        if closing < 0:
            yield start, len(text)
            return
        position, is_open = closing + len(pair.closing), False
        yield start, position


def _closes_first(text: str, pair: Markers) -> bool:
    closing, opening = text.find(pair.closing), text.find(pair.opening)
    return closing >= 0 and not 0 <= opening < closing


def completion_pieces(
    prompt_tokens: Sequence[PromptToken], tokens: Sequence[Token], markers: Mapping[int, str] | None
) -> tuple[str, list[tuple[int, int, int]]]:
    """Return the completion's text, and of each token its index and its span [start, end) in it.

    A special token has no text of its own in a completion; it has the one that it has in the prompt, if it is there.
    With `markers`, these have the given texts, and of the others only those that are markers of calls or reasoning.
    """
    special = {token.id: token.text for token in prompt_tokens if token.special}
    if markers is not None:
        special = {id_: text for id_, text in special.items() if text in MARKER_TEXTS} | {**markers}
    pieces = [token.text or (special.get(token.id, "") if token.special else "") for token in tokens]
    ends = list(accumulate(map(len, pieces), initial=0))
    return "".join(pieces), [(token.index, *span) for token, span in zip(tokens, pairwise(ends), strict=True)]
