"""Requests of Follow from the wire: how a completion is followed, its tokens and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, takewhile

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    MAX_ALTERNATIVES,
    Agreement,
    FollowSettings,
    GivenLogprobs,
    InvalidRequestError,
    NumberFormat,
    check_token_ids,
)
from gradellm_server.rpc.wire_enums import choice, set_fields

MAX_LOGPROB = 1e-3  # rounding puts that of a certain token a little above 0


def read_follow_settings(request: pb.FollowStart) -> FollowSettings:
    """The settings of a call of Follow, but for prompt and attribution."""
    theirs = choice(NumberFormat, pb.UpstreamDtype, request, "upstream_dtype", "start")
    total = request.agreement
    numbers = (total.largest, total.mean, total.noise)
    num_logprobs = total.logprobs or total.tokens
    if not 0 <= total.tokens <= num_logprobs or not all(0 <= number < math.inf for number in numbers):
        raise InvalidRequestError("start.agreement", "its numbers must be finite, not negative, and those of an event")
    return FollowSettings(
        **set_fields(request, "max_new_tokens"),
        upstream_dtype=theirs or NumberFormat.BFLOAT16,
        num_alternatives=request.num_alternatives,
        ids=tuple(request.completion_ids),
        agreement=Agreement.resumed(total.tokens, total.largest, total.mean, num_logprobs, total.noise),
    )


def read_appended(request: pb.FollowAppend, vocab_size: int, max_tokens: int) -> tuple[list[int], list[GivenLogprobs]]:
    """The tokens of a message to Follow, and the other engine's log-probabilities at each.

    Raises:
        InvalidRequestError: if there are more than `max_tokens`, one is not in the vocabulary, or the numbers are not
            log-probabilities.
    """
    ids, logprobs = request.ids, request.logprobs
    if len(ids) > max_tokens:
        raise InvalidRequestError(
            "append.ids", f"{len(ids):,} tokens; the limit of a completion is {max_tokens:,}: send fewer"
        )
    if logprobs and len(logprobs) != len(ids):
        raise InvalidRequestError(
            "append.logprobs", f"are {len(logprobs)} for {len(ids)} ids; give one for each, or none"
        )
    check_token_ids("append.ids", ids, vocab_size)
    _check_logprobs("append.logprobs", logprobs)
    if not logprobs:
        if request.alternative_logprobs:
            raise InvalidRequestError("append.alternative_logprobs", "need logprobs of the ids, too")
        return list(ids), [GivenLogprobs()] * len(ids)
    alternatives = _alternatives(request.alternative_logprobs, len(ids))
    return list(ids), list(map(GivenLogprobs, logprobs, alternatives))


def _alternatives(values: Sequence[float], num_tokens: int) -> list[tuple[float, ...]]:
    """For each token the log-probabilities of alternatives that are known."""
    field = "append.alternative_logprobs"
    count, rest = divmod(len(values), num_tokens)
    if rest or count > MAX_ALTERNATIVES:
        raise InvalidRequestError(
            field, f"are {len(values)} for {num_tokens} ids; give equally many for each, at most {MAX_ALTERNATIVES}"
        )
    _check_logprobs(field, values)
    rows = [values[first : first + count] for first in range(0, len(values), count)] if count else [()] * num_tokens
    known = [tuple(takewhile(lambda value: not math.isnan(value), row)) for row in rows]
    for index, row in enumerate(known):
        if any(before < after for before, after in pairwise(row)):
            raise InvalidRequestError(field, f"of token {index} are not in descending order")
    return known


def _check_logprobs(field: str, values: Sequence[float]) -> None:
    for index, logprob in enumerate(values):
        if logprob > MAX_LOGPROB or logprob == -math.inf:
            raise InvalidRequestError(
                f"{field}[{index}]", f"{logprob:g} is not a log-probability: at most 0, finite or NaN"
            )
