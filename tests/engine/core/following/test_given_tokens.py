"""Given tokens: when a chunk is due, and what is compared."""

from __future__ import annotations

import math

import pytest
import torch

from gradellm_engine import InvalidRequestError
from gradellm_engine.core.following.agreement import Agreement, GivenLogprobs, NumberFormat, Verdict
from gradellm_engine.core.following.given_tokens import Following, FollowSettings, GivenTokens
from gradellm_engine.core.sampler import ComparedLogprobs, Distribution


class Fixed(Distribution):
    """A distribution with the same log-probabilities at every token."""

    def compared(self, token_id: int, num_alternatives: int) -> ComparedLogprobs:
        return ComparedLogprobs(self.logsumexp, (-3.0, -4.0)[:num_alternatives], SQUARES)


def distribution(logprob: float) -> Distribution:
    return Fixed(torch.zeros(1), logprob, 0, 0.0)


def logprobs(*chosen: float) -> list[GivenLogprobs]:
    return [GivenLogprobs(each) for each in chosen]


SQUARES = 0.4
FLOAT32 = Following(NumberFormat.FLOAT32, NumberFormat.FLOAT32)


def test_a_known_completion_is_due_to_its_end() -> None:
    given = GivenTokens([1, 2, 3], None, num_read=0)
    assert [given.is_due(done, 2) for done in range(4)] == [True, True, True, False]
    assert given.verdict is None
    given.compare(0, distribution(-1.0))
    assert given.take_agreement() is None


def test_a_followed_one_is_due_by_chunk_flush_and_end() -> None:
    given = GivenTokens([1, 2, 3], FLOAT32, num_read=2)
    assert not given.is_due(2, 4)
    given.append([4, 5, 6], logprobs(-1.0, math.nan, -2.0))
    assert given.is_due(2, 4)
    assert not given.is_due(3, 4)
    given.flush()
    assert given.is_due(5, 4)
    assert not given.is_due(6, 4)
    given.append([7], [])
    assert not given.is_due(6, 4)
    given.close()
    assert given.is_due(6, 4)
    assert not given.is_due(7, 4)


def test_comparison() -> None:
    before = Agreement(5, 0.5, 1.0, 5, 0.5)
    given = GivenTokens([1, 2], Following(NumberFormat.FLOAT32, NumberFormat.INT8, before), num_read=2)
    given.append([3, 4, 5], [GivenLogprobs(), GivenLogprobs(-1.0, (-3.0, -5.0)), GivenLogprobs(-2.0)])
    for index, own in enumerate([-9.0, -9.0, -9.0, -1.5, -2.0]):
        given.compare(index, distribution(own))
    first = Agreement.of(GivenLogprobs(-1.0, (-3.0, -5.0)), ComparedLogprobs(-1.5, (-3.0, -4.0), SQUARES))
    chunk = first + Agreement.of(GivenLogprobs(-2.0), ComparedLogprobs(-2.0, (), SQUARES))
    assert chunk.num_logprobs == 4
    assert given.take_agreement() == (3, chunk)
    assert given.agreement == before + chunk
    assert given.take_agreement() is None
    assert given.verdict is Verdict.UNKNOWN  # of 7 tokens


def test_settings() -> None:
    FollowSettings(ids=(1, 2)).check(2)
    with pytest.raises(InvalidRequestError, match="completion_ids: are 2 tokens; max_new_tokens allows 1"):
        FollowSettings(ids=(1, 2)).check(1)
