"""Tokens that another engine wrote, with its log-probabilities, as they are appended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WrittenToken", "append_request", "written_tokens"]

MAX_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token that another engine wrote."""

    id: int
    logprob: float = math.nan
    """Its log-probability; NaN where it is not known."""
    alternatives: tuple[float, ...] = ()
    """Log-probabilities of the engine's most probable other tokens, the largest first."""


def written_tokens(
    ids: Sequence[int],
    logprobs: Sequence[float | None] | None,
    top_logprobs: Sequence[Sequence[float]] | None,
) -> list[WrittenToken]:
    """Return the tokens of `append`. Raises InvalidRequestError."""
    checked = validation.int32s("ids", ids)
    if logprobs is None:
        if top_logprobs is not None:
            raise InvalidRequestError.of("top_logprobs", "need logprobs, too")
        return [WrittenToken(token_id) for token_id in checked]
    chosen = _as_many("logprobs", logprobs, checked)
    top = [()] * len(checked) if top_logprobs is None else _as_many("top_logprobs", top_logprobs, checked)
    known = [math.nan if value is None else validation.number("logprobs", value) for value in chosen]
    alternatives = map(_alternatives, top, known)
    return [WrittenToken(*token) for token in zip(checked, known, alternatives, strict=True)]


def append_request(tokens: Sequence[WrittenToken]) -> pb.FollowRequest:
    """Return the message that appends tokens."""
    width = max((len(token.alternatives) for token in tokens), default=0)
    rows = ((*token.alternatives, *[math.nan] * (width - len(token.alternatives))) for token in tokens)
    return pb.FollowRequest(
        append=pb.FollowAppend(
            ids=[token.id for token in tokens],
            logprobs=[token.logprob for token in tokens],
            alternative_logprobs=[value for row in rows for value in row],
        )
    )


def _as_many(name: str, values: object, ids: Sequence[int]) -> list[object]:
    found = validation.as_list(name, values)
    if len(found) != len(ids):
        raise InvalidRequestError.of(name, f"are {len(found)} for {len(ids)} ids; give one for each, or none")
    return found


def _alternatives(top: object, chosen: float) -> tuple[float, ...]:
    """Log-probabilities of the most probable tokens without the chosen one's, the largest first."""
    values = [validation.number("top_logprobs", value) for value in validation.as_list("top_logprobs", top)]
    if chosen in values:
        values.remove(chosen)
    return tuple(sorted(values, reverse=True)[:MAX_ALTERNATIVES])
