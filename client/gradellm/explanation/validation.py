"""Whether the parts of an explanation belong together, wherever it comes from: a stream, a file, or a caller.

What this lets through can be shown: offsets lie in the texts, columns before their tokens, and everything that is made
of an explanation stays in proportion to it. Each check is linear.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Alternative, Attribution, PromptToken, Token

__all__ = ["check_explanation"]

_MOST_FORCED = 1 << 17
"""Tokens before the first one that is there, which are held by nothing but its place, and take a column each."""
_LARGEST_ID = 2**31 - 1  # of the wire
_LARGEST_SCORE = 3.4028235677973366e38  # what rounds to the largest float32, as which scores come over the wire
_SPAN = 64
"""Code points that a token may have in the mean where tokens share characters; a character has a few tokens."""


def check_explanation(explanation: Explanation) -> None:
    """Refuse an explanation whose parts do not belong together. Raises InvalidExplanationError with the place."""
    _check_prompt(explanation)
    _check_sources(explanation)
    _check_tokens(explanation)
    _check_order([row.token_index for row in explanation.attributions], "attributions", "token_index")
    last = explanation.tokens[-1].index if explanation.tokens else _MOST_FORCED
    for place, row in enumerate(explanation.attributions):
        _check_row(row, f"attributions[{place}]", explanation.num_prompt_columns, last)


def _refuse(where: str, problem: str) -> None:
    raise InvalidExplanationError(f"{where}: {problem}")


def _check_prompt(explanation: Explanation) -> None:
    length, covered = len(explanation.prompt_text), 0
    tokens = explanation.prompt_tokens
    for place, token in enumerate(tokens):
        where = f"started.prompt_tokens[{place}]"
        _check_id(token, where)
        if not 0 <= token.start <= token.end <= length:
            _refuse(where, f"start {token.start} and end {token.end} do not lie in the prompt's {length} code points")
        if place and (token.start < tokens[place - 1].start or token.end < tokens[place - 1].end):
            _refuse(where, "begins or ends before the token in front of it")
        if token.message is not None and not 0 <= token.message <= _LARGEST_ID:
            _refuse(f"{where}.message", f"must be an index, not {token.message}")
        covered += token.end - token.start
    if covered > 4 * length + _SPAN * len(tokens):
        _refuse("started.prompt_tokens", f"they cover {covered} code points of a prompt that has {length}")


def _check_sources(explanation: Explanation) -> None:
    count, named = len(explanation.prompt_tokens), 0
    for place, source in enumerate(explanation.started.sources):
        where = f"started.sources[{place}]"
        if source.completion_indexes:
            _refuse(f"{where}.completion_indexes", "must be empty: it is a part of the prompt")
        if not source.token_indexes:
            _refuse(f"{where}.token_indexes", "must hold one token at least")
        for index in source.token_indexes:
            if not 0 <= index < count:
                _refuse(f"{where}.token_indexes", f"holds {index}, and the prompt has {count} tokens")
        if any(b <= a for a, b in pairwise(source.token_indexes)):
            _refuse(f"{where}.token_indexes", "must rise")
        named += len(source.token_indexes)
    if named > count:
        _refuse("started.sources", f"they name {named} tokens of a prompt that has {count}: one is in two")


def _check_tokens(explanation: Explanation) -> None:
    tokens = explanation.tokens
    _check_order([token.index for token in tokens], "tokens", "index")
    if tokens and tokens[0].index > _MOST_FORCED:
        _refuse("tokens[0].index", f"is {tokens[0].index}; at most {_MOST_FORCED:,} tokens may be forced before it")
    before: Token | None = None
    first, length = (max(0, tokens[0].start) if tokens else 0), sum(len(token.text) for token in tokens)
    for place, token in enumerate(tokens):
        where = f"tokens[{place}]"
        _check_id(token, where)
        if before is not None and token.index != before.index + 1:
            _refuse("tokens", f"one is missing between {before.index} and {token.index}")
        if not 0 <= token.end - token.start <= len(token.text):
            _refuse(
                where, f"start {token.start} and end {token.end} are not those of its {len(token.text)} code points"
            )
        if not first <= token.start <= token.end <= first + length:
            _refuse(where, f"start {token.start} and end {token.end} lie outside the completion's text")
        columns = range(explanation.num_prompt_columns + token.index + 1)
        if token.source_index is not None and token.source_index not in columns:
            _refuse(f"{where}.source_index", f"is {token.source_index}, and {len(columns)} columns lie before it")
        for alternative in token.alternatives:
            _check_id(alternative, f"{where}.alternatives")
        before = token


def _check_row(row: Attribution, where: str, num_prompt_columns: int, last: int) -> None:
    if row.token_index > last:
        _refuse(f"{where}.token_index", f"is {row.token_index}, and the last is {last}")
    columns = range(num_prompt_columns + row.token_index)  # the prompt and the tokens before this one
    scores, places = row.scores, row.source_indexes
    if places and len(places) != len(scores):
        _refuse(where, f"has {len(scores)} scores for {len(places)} source_indexes")
    if len(scores) > len(columns):
        _refuse(f"{where}.scores", f"are {len(scores)}, more than the {len(columns)} columns that lie before its token")
    if places and (min(places) < 0 or max(places) >= len(columns)):
        wrong = next(place for place in places if place not in columns)
        _refuse(
            f"{where}.source_indexes", f"hold {wrong}: more than the {len(columns)} columns that lie before its token"
        )
    if len(set(places)) < len(places):
        _refuse(f"{where}.source_indexes", "hold a column twice")
    for index, score in enumerate(scores):
        if abs(score) > _LARGEST_SCORE and math.isfinite(score):
            _refuse(f"{where}.scores[{index}]", f"{score:g} is larger than a score can be")
    for what in ("target_token_id", "contrast_token_id"):
        token_id = getattr(row, what)
        if token_id is not None and not 0 <= token_id <= _LARGEST_ID:
            _refuse(f"{where}.{what}", f"must be a token id, 0 to {_LARGEST_ID}, not {token_id}")


def _check_order(indexes: list[int], what: str, field: str) -> None:
    for place, index in enumerate(indexes):
        if index < 0 or (place and index <= indexes[place - 1]):
            _refuse(f"{what}[{place}].{field}", f"is {index}: places in the completion must rise from 0")


def _check_id(token: PromptToken | Token | Alternative, where: str) -> None:
    if not 0 <= token.id <= _LARGEST_ID:
        _refuse(f"{where}.id", f"must be a token id, 0 to {_LARGEST_ID}, not {token.id}")
