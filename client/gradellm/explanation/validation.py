"""Consistency checks of an explanation from any source: a stream, a file, or a caller.

An explanation that passes can be drawn: offsets lie within the texts, columns before their tokens, and the size of
every output is proportional to the explanation's size. Each check is linear.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.models import Alternative, Attribution, PromptToken, Started, Token

__all__ = ["check_explanation"]

_MAX_FORCED = 1 << 17
"""Forced tokens, which the index of the first token implies, and which take a column each."""
_MAX_ID = 2**31 - 1  # of an int32 of protobuf
_MAX_SCORE = 3.4028235677973366e38  # rounds to the largest float32, the wire's type of scores
_MEAN_SPAN = 64
"""Mean code points per token, which bounds the overlap of tokens that share characters."""


def check_explanation(started: Started, tokens: Sequence[Token], attributions: Sequence[Attribution]) -> None:
    """Raise InvalidExplanationError, with the path, if the parts of an explanation are inconsistent."""
    _check_prompt(started)
    _check_sources(started)
    num_prompt_columns = len(started.sources or started.prompt_tokens)
    _check_tokens(tokens, num_prompt_columns)
    _check_order([row.token_index for row in attributions], "attributions", "token_index")
    last = tokens[-1].index if tokens else _MAX_FORCED
    for index, row in enumerate(attributions):
        _check_row(row, f"attributions[{index}]", num_prompt_columns, last)


def _refuse(where: str, problem: str) -> None:
    raise InvalidExplanationError(f"{where}: {problem}")


def _check_prompt(started: Started) -> None:
    length, covered = len(started.prompt_text), 0
    tokens = started.prompt_tokens
    for index, token in enumerate(tokens):
        where = f"started.prompt_tokens[{index}]"
        _check_id(token, where)
        if not 0 <= token.start <= token.end <= length:
            _refuse(where, f"start {token.start} and end {token.end} do not lie in the prompt's {length} code points")
        if index and (token.start < tokens[index - 1].start or token.end < tokens[index - 1].end):
            _refuse(where, "begins or ends before the previous token")
        if token.message is not None and not 0 <= token.message <= _MAX_ID:
            _refuse(f"{where}.message", f"must be an index, not {token.message}")
        covered += token.end - token.start
    if covered > 4 * length + _MEAN_SPAN * len(tokens):
        _refuse("started.prompt_tokens", f"cover {covered} code points of a prompt of {length}")


def _check_sources(started: Started) -> None:
    count, total = len(started.prompt_tokens), 0
    for number, source in enumerate(started.sources):
        where = f"started.sources[{number}]"
        if source.completion_indexes:
            _refuse(f"{where}.completion_indexes", "must be empty for a part of the prompt")
        if not source.token_indexes:
            _refuse(f"{where}.token_indexes", "must have at least one token")
        for index in source.token_indexes:
            if not 0 <= index < count:
                _refuse(f"{where}.token_indexes", f"has {index}, but the prompt has {count} tokens")
        if any(b <= a for a, b in pairwise(source.token_indexes)):
            _refuse(f"{where}.token_indexes", "must ascend")
        total += len(source.token_indexes)
    if total > count:
        _refuse("started.sources", f"have {total} tokens of a prompt of {count}: a token is in two sources")


def _check_tokens(tokens: Sequence[Token], num_prompt_columns: int) -> None:
    _check_order([token.index for token in tokens], "tokens", "index")
    if tokens and tokens[0].index > _MAX_FORCED:
        _refuse("tokens[0].index", f"is {tokens[0].index}; at most {_MAX_FORCED:,} tokens may be forced before it")
    before: Token | None = None
    first, length = (max(0, tokens[0].start) if tokens else 0), sum(len(token.text) for token in tokens)
    for number, token in enumerate(tokens):
        where = f"tokens[{number}]"
        _check_id(token, where)
        if before is not None and token.index != before.index + 1:
            _refuse("tokens", f"a token is missing between {before.index} and {token.index}")
        if not 0 <= token.end - token.start <= len(token.text):
            _refuse(
                where, f"start {token.start} and end {token.end} are not those of its {len(token.text)} code points"
            )
        if not first <= token.start <= token.end <= first + length:
            _refuse(where, f"start {token.start} and end {token.end} are outside the completion's text")
        columns = range(num_prompt_columns + token.index + 1)
        if token.source_index is not None and token.source_index not in columns:
            _refuse(f"{where}.source_index", f"is {token.source_index}, but there are {len(columns)} columns before it")
        for alternative in token.alternatives:
            _check_id(alternative, f"{where}.alternatives")
        before = token


def _check_row(row: Attribution, where: str, num_prompt_columns: int, last: int) -> None:
    if row.token_index > last:
        _refuse(f"{where}.token_index", f"is {row.token_index}, but the last token is {last}")
    columns = range(num_prompt_columns + row.token_index)  # the prompt and the tokens before this one
    scores, indexes = row.scores, row.source_indexes
    if indexes and len(indexes) != len(scores):
        _refuse(where, f"has {len(scores)} scores for {len(indexes)} source_indexes")
    if len(scores) > len(columns):
        _refuse(f"{where}.scores", f"are {len(scores)}, more than the {len(columns)} columns before its token")
    if indexes and (min(indexes) < 0 or max(indexes) >= len(columns)):
        wrong = next(column for column in indexes if column not in columns)
        _refuse(f"{where}.source_indexes", f"have {wrong}, but there are {len(columns)} columns before its token")
    if len(set(indexes)) < len(indexes):
        _refuse(f"{where}.source_indexes", "have a column twice")
    for index, score in enumerate(scores):
        if abs(score) > _MAX_SCORE and math.isfinite(score):
            _refuse(f"{where}.scores[{index}]", f"{score:g} exceeds the range of float32")
    for what in ("target_token_id", "contrast_token_id"):
        token_id = getattr(row, what)
        if token_id is not None and not 0 <= token_id <= _MAX_ID:
            _refuse(f"{where}.{what}", f"must be a token id, 0 to {_MAX_ID}, not {token_id}")


def _check_order(indexes: list[int], what: str, field: str) -> None:
    for number, index in enumerate(indexes):
        if index < 0 or (number and index <= indexes[number - 1]):
            _refuse(f"{what}[{number}].{field}", f"is {index}: indexes must ascend from 0")


def _check_id(token: PromptToken | Token | Alternative, where: str) -> None:
    if not 0 <= token.id <= _MAX_ID:
        _refuse(f"{where}.id", f"must be a token id, 0 to {_MAX_ID}, not {token.id}")
