"""What is asked for beside a caller's own fields, and taken out again."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm_gateway.upstream.answer_fields import (
    NUM_TOP_LOGPROBS,
    AnswerFields,
    ChoiceTokens,
    MalformedAnswerError,
)

LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}


def choice(**fields: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "delta": {"content": "a"},
        "logprobs": LOGPROBS,
        "finish_reason": None,
        "token_ids": [5],
        **fields,
    }


def test_ids_and_logprobs_are_asked_for() -> None:
    body = {"messages": [], "temperature": 1, "gradellm": {}}
    asked = {"messages": [], "temperature": 1, "logprobs": True, "return_token_ids": True}
    assert AnswerFields(body, asks_for_ids=True).request() == asked
    assert AnswerFields(body, asks_for_ids=False).request() == {"messages": [], "temperature": 1}


@pytest.mark.parametrize("field", ["top_logprobs", "logprob_token_ids"])
def test_a_request_that_the_upstream_refuses_stays_as_it_is(field: str) -> None:
    asked = AnswerFields({field: [3]}, asks_for_ids=True).request()
    assert "logprobs" not in asked


def test_what_was_added_is_taken_out() -> None:
    fields = AnswerFields({"gradellm": {}}, asks_for_ids=True)
    chunk = {"id": "x", "choices": [choice()], "prompt_token_ids": [1, 2], "prompt_text": None}
    assert fields.stripped(chunk) == {
        "id": "x",
        "choices": [choice(logprobs=None, token_ids=None)],
        "prompt_token_ids": None,
        "prompt_text": None,
    }
    assert chunk["choices"] == [choice()]


def test_what_the_caller_asked_for_stays() -> None:
    fields = AnswerFields({"logprobs": True, "return_token_ids": True}, asks_for_ids=True)
    chunk = {"choices": [choice(), choice(delta={})], "prompt_token_ids": [1]}
    assert fields.stripped(chunk) == chunk


TOP = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]}


def test_the_most_probable_tokens_are_asked_for_and_taken_out() -> None:
    asked = AnswerFields({}, asks_for_ids=True, asks_for_top=True)
    assert asked.request()["top_logprobs"] == NUM_TOP_LOGPROBS
    assert asked.choices({"choices": [choice(logprobs=TOP)]})[0].top_logprobs == [[-0.5]]
    (stripped,) = (asked.stripped({"choices": [choice(logprobs=TOP)]}) or {})["choices"]
    assert stripped["logprobs"] is None
    fields = AnswerFields({"logprobs": True}, asks_for_ids=True, asks_for_top=True)
    assert fields.request()["top_logprobs"] == NUM_TOP_LOGPROBS
    (stripped,) = (fields.stripped({"choices": [choice(logprobs=TOP)]}) or {})["choices"]
    assert stripped["logprobs"]["content"] == [{"token": "a", "logprob": -0.5, "top_logprobs": []}]
    for malformed in ({"content": None}, {"content": [3]}):
        (stripped,) = (fields.stripped({"choices": [choice(logprobs=malformed)]}) or {})["choices"]
        assert stripped["logprobs"] == malformed


@pytest.mark.parametrize(
    "body",
    [{"logprobs": True, "top_logprobs": 2}, {"response_format": {"type": "json_object"}}, {"logit_bias": {"1": 1}}],
)
def test_they_are_not_asked_for_where_that_says_nothing(body: dict[str, Any]) -> None:
    fields = AnswerFields(body, asks_for_ids=True, asks_for_top=True)
    assert fields.request().get("top_logprobs") == body.get("top_logprobs")
    (stripped,) = (fields.stripped({"choices": [choice(logprobs=TOP)]}) or {})["choices"]
    assert stripped["logprobs"] == (TOP if "logprobs" in body else None)


def test_logprobs_are_left_out_where_the_upstream_does_so() -> None:
    fields = AnswerFields({}, asks_for_ids=True)
    fields.stripped({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
    (stripped,) = (fields.stripped({"choices": [choice()]}) or {})["choices"]
    assert "logprobs" not in stripped


def test_chunks_of_nothing_else_are_left_out() -> None:
    fields = AnswerFields({}, asks_for_ids=True)
    assert fields.stripped({"choices": [choice(delta={})]}) is None
    own: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": None, "logprobs": None, "token_ids": None}
    for kept in (choice(delta={}, finish_reason="stop"), own):
        assert fields.stripped({"choices": [kept]}) is not None
    assert AnswerFields({"logprobs": True}, asks_for_ids=True).stripped({"choices": [choice(delta={})]}) is not None
    assert fields.stripped({"choices": [], "usage": {}}) == {"choices": [], "usage": {}}


def test_the_tokens_of_a_chunk_and_of_a_whole_answer() -> None:
    fields = AnswerFields({}, asks_for_ids=True)
    assert fields.choices({"choices": [choice()]}) == [ChoiceTokens(0, (5,), [-0.5], [[]], "a")]
    whole = choice(message={"content": "a", "reasoning": "b"}, finish_reason="stop")
    del whole["delta"]
    assert fields.choices({"choices": [whole]}) == [ChoiceTokens(0, (5,), [-0.5], [[]], "a", "b", True)]
    assert fields.choices({"choices": [{"index": 1, "delta": {}}]}) == [ChoiceTokens(1, None, [], [])]
    assert fields.prompt_ids({"prompt_token_ids": [1, 2]}) == (1, 2)
    assert fields.prompt_ids({}) is None


@pytest.mark.parametrize("logprob", [-9999.0, None, "x", float("nan")])
def test_logprobs_that_are_not_known_are_none(logprob: object) -> None:
    found = AnswerFields({}, asks_for_ids=True).choices(
        {"choices": [choice(logprobs={"content": [{"logprob": logprob}]})]}
    )
    assert found[0].logprobs == [None]
    assert found[0].ids == (5,)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": {}},
        {"choices": [3]},
        {"choices": [{"index": "0"}]},
        {"choices": [{"index": 1 << 40}]},
        {"choices": [{"index": 0, "token_ids": [1.5]}]},
        {"choices": [{"index": 0, "token_ids": [True]}]},
        {"choices": [{"index": 0, "token_ids": [-1]}]},
        {"choices": [{"index": 0, "token_ids": "12"}]},
    ],
)
def test_malformed_answers(answer: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswerError):
        AnswerFields({}, asks_for_ids=True).choices(answer)
    assert AnswerFields({}, asks_for_ids=True).stripped(answer) is not None
