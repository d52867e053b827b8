"""Tokens that are appended: their log-probabilities, and the message that carries them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.following.written import WrittenToken, append_request, written_tokens


def test_tokens() -> None:
    (first, second) = written_tokens([3, 4], [-1.0, None], None)
    assert first == WrittenToken(3, -1.0)
    assert math.isnan(second.logprob)
    assert [token.id for token in written_tokens((5,), None, None)] == [5]


def test_alternatives_are_the_other_tokens() -> None:
    """vLLM lists the chosen token first, wherever it ranks; OpenAI lists the best, with or without it."""
    top = [[-2.0, -0.5, -3.0], [-1.0, -0.7], []]
    tokens = written_tokens([1, 2, 3], [-2.0, -4.0, -1.0], top)
    assert [token.alternatives for token in tokens] == [(-0.5, -3.0), (-0.7, -1.0), ()]
    (many,) = written_tokens([1], [-1.0], [[-float(i) for i in range(30)]])
    assert len(many.alternatives) == 20


def test_the_message() -> None:
    message = append_request([WrittenToken(1, -1.0, (-2.0,)), WrittenToken(2, -1.0, (-2.0, -3.0))]).append
    assert (list(message.ids), list(message.logprobs)) == ([1, 2], [-1.0, -1.0])
    first, missing, *rest = message.alternative_logprobs
    assert (first, rest) == (-2.0, [-2.0, -3.0])
    assert math.isnan(missing)
    assert not append_request([WrittenToken(1)]).append.alternative_logprobs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [-1.0], None), "logprobs: are 1 for 2 ids"),
        (([1], [-1.0], []), "top_logprobs: are 0 for 1 ids"),
        (([1], None, [[-1.0]]), "top_logprobs: need logprobs"),
        (([1], ["a"], None), "logprobs"),
        (([1], [-1.0], [["a"]]), "top_logprobs"),
        (([1], [-1.0], [-1.0]), "top_logprobs"),
        ((["a"], None, None), "ids"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        written_tokens(*arguments)
