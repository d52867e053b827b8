"""Sampling parameters validate themselves, and name the invalid field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradellm_engine import InvalidRequestError, Sampling
from gradellm_engine.sampling_params import (
    MAX_ALTERNATIVES,
    MAX_LOGIT_BIASES,
    MAX_SEED,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
)

BIASES = tuple((token_id, 1.0) for token_id in range(100_000))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_new_tokens", [0, -1]),
        ("temperature", [-0.1, math.nan, math.inf, -math.inf]),
        ("top_k", [-1]),
        ("top_p", [0.0, -0.5, 1.0001, math.nan, math.inf]),
        ("seed", [-1, MAX_SEED + 1]),
        ("num_alternatives", [-1, MAX_ALTERNATIVES + 1]),
        ("stop", [("a",) * (MAX_STOP_TEXTS + 1)]),
        ("min_p", [-1e-9, 1.0001, math.nan, math.inf]),
        ("repetition_penalty", [0.0, -1.0, 0.009, 101.0, math.nan, math.inf]),
        ("frequency_penalty", [-2.1, 2.1, math.nan, math.inf, -math.inf]),
        ("presence_penalty", [-2.1, 2.1, math.nan]),
        ("logit_bias", [BIASES[: MAX_LOGIT_BIASES + 1], BIASES, ((1, 2.0), (1, 2.0))]),
        ("min_new_tokens", [-1]),
        ("stop_token_ids", [tuple(range(MAX_STOP_TOKEN_IDS + 1))]),
    ],
)
def test_invalid_sampling_is_named(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequestError) as caught:
            Sampling(**{field: value})
        assert caught.value.field == field
        assert str(caught.value) == f"{field}: {caught.value.description}"
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_new_tokens", [None, 1, 10**6]),
        ("temperature", [0.0, 5e-324, 1e308]),
        ("top_k", [0, 1, 10**9]),
        ("top_p", [1e-9, 1.0]),
        ("seed", [None, 0, MAX_SEED]),
        ("num_alternatives", [0, MAX_ALTERNATIVES]),
        ("stop", [(), ("a",) * MAX_STOP_TEXTS, ("\n", "a", "ab")]),
        ("min_p", [0.0, 1.0]),
        ("repetition_penalty", [0.01, 100.0]),
        ("frequency_penalty", [-2.0, 2.0]),
        ("presence_penalty", [-2.0, 2.0]),
        ("logit_bias", [(), BIASES[:MAX_LOGIT_BIASES], ((7, -100.0), (8, 100.0))]),
        ("min_new_tokens", [0, 10**6]),
        ("stop_token_ids", [(), tuple(range(MAX_STOP_TOKEN_IDS))]),
    ],
)
def test_limits_themselves_are_valid(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(Sampling(**{field: value}), field) == value


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf, 100.1, -101.0])
def test_a_bias_is_named_by_its_token(bias: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"logit_bias\[7\]: must lie between -100 and 100, was"):
        Sampling(logit_bias=((3, 1.0), (7, bias)))


def test_an_empty_stop_text_is_named_by_its_index() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Sampling(stop=("a", ""))
    assert caught.value.field == "stop[1]"


@pytest.mark.parametrize(
    ("changing", "keywords"),
    [
        (False, {}),
        (False, {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.5, "seed": 1}),
        (False, {"stop": ("a",), "ignore_eos": True, "stop_token_ids": (1,), "skip_special_tokens": False}),
        (True, {"repetition_penalty": 1.1}),
        (True, {"frequency_penalty": -0.1}),
        (True, {"presence_penalty": 0.1}),
        (True, {"logit_bias": ((1, 0.0),)}),
        (True, {"min_new_tokens": 1}),
    ],
)
def test_what_changes_logits(changing: bool, keywords: dict[str, Any]) -> None:
    assert Sampling(**keywords).changes_logits is changing
