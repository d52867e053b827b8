"""Log-probabilities of chats and completions, as objects and as JSON; what is no number is not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradellm.following.openai_logprobs import told_logprobs


def token(logprob: object, *top: object) -> dict[str, Any]:
    return {"logprob": logprob, "top_logprobs": [{"logprob": each} for each in top]}


def test_chats() -> None:
    choice = {"logprobs": {"content": [token(-1.0, -1.0, -2.0), token(-3.0)]}}
    assert told_logprobs(choice, 2) == ([-1.0, -3.0], [[-1.0, -2.0], []])
    top = SimpleNamespace(logprob=-2.0)
    content = [SimpleNamespace(logprob=-1.0, top_logprobs=[top])]
    objects = SimpleNamespace(logprobs=SimpleNamespace(content=content))
    assert told_logprobs(objects, 1) == ([-1.0], [[-2.0]])


def test_completions() -> None:
    told = {"token_logprobs": [None, -1.0], "top_logprobs": [None, {"a": -1.0, "b": -2.0}]}
    assert told_logprobs({"logprobs": told}, 2) == ([None, -1.0], [[], [-1.0, -2.0]])
    assert told_logprobs({"logprobs": {"token_logprobs": [-1.0]}}, 1) == ([-1.0], [[]])


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": [token(-1.0)]}, {"content": 3}, []])
def test_nothing_is_told(logprobs: Any) -> None:
    assert told_logprobs({"logprobs": logprobs}, 2) == ([None, None], [[], []])


@pytest.mark.parametrize("value", [-9999.0, None, "x", float("nan"), True])
def test_what_is_no_log_probability_is_not_known(value: object) -> None:
    assert told_logprobs({"logprobs": {"content": [token(value, value, -1.0)]}}, 1) == ([None], [[-1.0]])
    assert told_logprobs({"logprobs": {"content": [token(1e-9)]}}, 1) == ([0.0], [[]])  # rounding
