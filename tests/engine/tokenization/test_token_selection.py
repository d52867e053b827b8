"""Selections of a completion's tokens: by index, and by spans of its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine import InvalidRequestError, TokenSelection
from gradellm_engine.tokenization.token_selection import TokenText, reachable_tokens, selected_tokens


def texts(*lengths: int | None) -> list[TokenText]:
    """Tokens whose texts have these lengths; None for a special token."""
    tokens, end = [], 0
    for length in lengths:
        start, end = end, end + (length or 0)
        tokens.append(TokenText(start, end, special=length is None))
    return tokens


WORDS = texts(4, 6, 1, 3)  # code points 0..4, 4..10, 10..11, 11..14


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 1)], [0]),
        ([(3, 5)], [0, 1]),
        ([(4, 10)], [1]),
        ([(10, 11), (0, 14)], [0, 1, 2, 3]),
        ([(5, 6), (12, 13)], [1, 3]),
    ],
)
def test_a_span_selects_the_tokens_that_it_overlaps(spans: list[tuple[int, int]], expected: list[int]) -> None:
    assert list(selected_tokens(TokenSelection(spans=tuple(spans)), WORDS).indexes) == expected


def test_indexes_and_spans_are_united() -> None:
    found = selected_tokens(TokenSelection((3, 1, 3), ((5, 6), (10, 11))), WORDS)
    assert found == TokenSelection((1, 2, 3))


def test_parts_of_a_character_are_selected_with_it() -> None:
    """A token without text is the first part of the next token's character; a special token is not."""
    tokens = texts(2, 0, 0, 1, None, 1)
    assert selected_tokens(TokenSelection(spans=((2, 3),)), tokens).indexes == (1, 2, 3)
    assert selected_tokens(TokenSelection(spans=((3, 4),)), tokens).indexes == (5,)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=5),
)
def test_every_selected_token_overlaps_a_span_or_is_a_part(lengths: list[int], pairs: list[tuple[int, int]]) -> None:
    tokens = texts(*lengths)
    length = tokens[-1].end
    spans = [(start % length, min(length, start % length + size)) for start, size in pairs]
    found = selected_tokens(TokenSelection(spans=tuple(spans)), tokens).indexes
    for index, token in enumerate(tokens):
        following = next((t for t in tokens[index:] if t.end > t.start), None)  # the token's own text, or its character
        read = token if token.end > token.start else following
        overlaps = read is not None and any(a < read.end and b > read.start for a, b in spans)
        assert (index in found) == overlaps


@pytest.mark.parametrize(
    ("selection", "field", "message"),
    [
        (TokenSelection((0, 4)), "indexes", "4 is not a token of the completion; its tokens are 0 to 3"),
        (TokenSelection(spans=((0, 1), (13, 15))), "spans[1]", "ends at code point 15; the completion's text has 14"),
    ],
)
def test_what_the_completion_does_not_have_is_refused(selection: TokenSelection, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        selected_tokens(selection, WORDS)
    assert (caught.value.field, caught.value.description) == (f"attribution.tokens.{field}", message)


def test_a_completion_to_be_generated_has_as_many_tokens_as_it_may_get() -> None:
    assert reachable_tokens(TokenSelection((7, 0)), 8) == TokenSelection((0, 7))
    with pytest.raises(InvalidRequestError, match="8 is beyond max_new_tokens, 8; tokens 0 to 7") as caught:
        reachable_tokens(TokenSelection((8,)), 8)
    assert caught.value.field == "attribution.tokens.indexes"
    with pytest.raises(InvalidRequestError, match="use Attribute") as caught:
        reachable_tokens(TokenSelection((0,), ((0, 1),)), 8)
    assert caught.value.field == "attribution.tokens.spans"
