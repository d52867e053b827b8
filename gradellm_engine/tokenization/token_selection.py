"""Resolves a selection of a completion's tokens to their indexes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.params import TokenSelection

FIELD = "attribution.tokens"


@dataclass(frozen=True)
class TokenText:
    """The text of a token of a completion.

    Attributes:
        start: its first code point in the completion's text.
        end: one past its last.
        special: whether it is a special token, whose text is not in the completion's.
    """

    start: int
    end: int
    special: bool


def reachable_tokens(selection: TokenSelection, max_new_tokens: int) -> TokenSelection:
    """A selection of a completion that is yet to be generated, with up to `max_new_tokens` tokens.

    Raises:
        InvalidRequestError: for spans, and for indexes that the completion cannot reach.
    """
    if selection.spans:
        raise InvalidRequestError(
            f"{FIELD}.spans",
            "select tokens of a text that exists: use Attribute (`gradellm attribute`). Generate takes indexes",
        )
    if selection.indexes[-1] >= max_new_tokens:
        raise InvalidRequestError(
            f"{FIELD}.indexes",
            f"{selection.indexes[-1]} is beyond max_new_tokens, {max_new_tokens}; tokens 0 to {max_new_tokens - 1} can "
            "be generated",
        )
    return selection


def selected_tokens(selection: TokenSelection, tokens: Sequence[TokenText]) -> TokenSelection:
    """The selected tokens of a given completion, as indexes.

    A span selects the tokens whose text overlaps it, and tokens without text before such a token, which are parts of
    its first character.

    Raises:
        InvalidRequestError: naming the index or span that is not in the completion.
    """
    if selection.indexes and selection.indexes[-1] >= len(tokens):
        raise InvalidRequestError(
            f"{FIELD}.indexes",
            f"{selection.indexes[-1]} is not a token of the completion; its tokens are 0 to {len(tokens) - 1}",
        )
    length = tokens[-1].end
    for place, (_, end) in enumerate(selection.spans):
        if end > length:
            raise InvalidRequestError(
                f"{FIELD}.spans[{place}]", f"ends at code point {end}; the completion's text has {length}"
            )
    is_covered = [False] * length
    for start, end in _merged(selection.spans):
        is_covered[start:end] = [True] * (end - start)
    chosen = set(selection.indexes)
    for index, token in enumerate(tokens):
        if any(is_covered[token.start : token.end]):
            chosen.update(_parts_before(index, tokens), (index,))
    return TokenSelection(tuple(chosen))


def _merged(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans without overlaps that cover the same text."""
    last = 0
    for start, end in sorted(spans):
        if end > last:
            yield max(start, last), end
            last = end


def _parts_before(index: int, tokens: Sequence[TokenText]) -> range:
    """Tokens without text before a token: the first parts of its first character."""
    first = index
    while first > 0 and not tokens[first - 1].special and tokens[first - 1].start == tokens[first - 1].end:
        first -= 1
    return range(first, index)
