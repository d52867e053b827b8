"""Requests of Follow: settings, tokens, log-probabilities, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import GivenLogprobs, InvalidRequestError, NumberFormat
from gradellm_server.rpc.follow_from_wire import read_appended, read_follow_settings

NAN = math.nan


def read(**fields: Any) -> tuple[list[int], list[GivenLogprobs]]:
    return read_appended(pb.FollowAppend(**fields), vocab_size=100, max_tokens=4)


def test_tokens_without_logprobs() -> None:
    ids, given = read(ids=[1, 2])
    assert ids == [1, 2]
    assert not any(each.is_known for each in given)
    assert read() == ([], [])


def test_logprobs_and_alternatives() -> None:
    _, given = read(ids=[1, 2, 3], logprobs=[-1, -2, 0], alternative_logprobs=[-2, -3, -4, NAN, NAN, NAN])
    assert given == [GivenLogprobs(-1, (-2, -3)), GivenLogprobs(-2, (-4,)), GivenLogprobs(0)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": [1] * 5}, "append.ids: 5 tokens; the limit of a completion is 4"),
        ({"ids": [100]}, r"append.ids\[0\]"),
        ({"ids": [1, 2], "logprobs": [-1]}, "append.logprobs: are 1 for 2 ids"),
        ({"ids": [1], "logprobs": [0.5]}, r"append.logprobs\[0\]: 0.5 is not a log-probability"),
        ({"ids": [1], "alternative_logprobs": [-1]}, "append.alternative_logprobs: need logprobs"),
        (
            {"ids": [1, 2], "logprobs": [-1, -1], "alternative_logprobs": [-1] * 3},
            "append.alternative_logprobs: are 3 for 2 ids; give equally many for each, at most 20",
        ),
        (
            {"ids": [1], "logprobs": [-1], "alternative_logprobs": [-1] * 21},
            "append.alternative_logprobs: are 21 for 1 ids",
        ),
        (
            {"ids": [1], "logprobs": [-1], "alternative_logprobs": [-math.inf]},
            r"append.alternative_logprobs\[0\]: -inf is not",
        ),
        (
            {"ids": [1, 2], "logprobs": [-1, -1], "alternative_logprobs": [-1, -2, -2, -1]},
            "append.alternative_logprobs: of token 1 are not in descending order",
        ),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read(**fields)


def test_settings() -> None:
    total = pb.AgreementTotal(tokens=2, largest=0.5, mean=0.25, noise=0.125)
    settings = read_follow_settings(pb.FollowStart(completion_ids=[1, 2], agreement=total, max_new_tokens=7))
    assert (settings.ids, settings.max_new_tokens) == ((1, 2), 7)
    assert settings.upstream_dtype is NumberFormat.BFLOAT16
    assert (settings.agreement.num_tokens, settings.agreement.num_logprobs) == (2, 2)  # of an older client
    assert settings.agreement.noise == pytest.approx(0.125)
    total.logprobs = 10
    assert read_follow_settings(pb.FollowStart(agreement=total)).agreement.num_logprobs == 10


@pytest.mark.parametrize("total", [{"noise": NAN}, {"mean": -1}, {"tokens": -1}, {"tokens": 3, "logprobs": 2}])
def test_an_agreement_that_is_none(total: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"start\.agreement"):
        read_follow_settings(pb.FollowStart(agreement=pb.AgreementTotal(**total)))
