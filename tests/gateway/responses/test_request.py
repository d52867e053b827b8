"""Requests of the Responses API."""

from __future__ import annotations

import pytest

from gradellm import InvalidRequestError, Violation
from gradellm_gateway.responses.conversation import Conversation
from gradellm_gateway.responses.request import RESPONSE_FIELDS, ResponseFieldNames, ResponseRequest


def test_a_text_is_a_users_message() -> None:
    request = ResponseRequest.from_json({"input": "a", "instructions": "b", "max_output_tokens": 3})
    conversation = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
    assert request.keywords == {"messages": conversation, "max_new_tokens": 3, "attribution": None}


@pytest.mark.parametrize("field", RESPONSE_FIELDS.keys() - {"input"})
def test_null_counts_as_absent(field: str) -> None:
    assert ResponseRequest.from_json({"input": "a", field: None}) is not None


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({"input": "a"}, "input.messages[0].content", "input"),
        ({"input": "a", "instructions": "b"}, "messages[0].content", "instructions"),
        ({"input": [{}, {}], "instructions": "b"}, "messages[2].content", "input[1].content"),
        ({"input": [{}]}, "messages", "input"),
        ({"input": [{}]}, "max_new_tokens", "max_output_tokens"),
    ],
)
def test_messages_are_named_as_the_caller_has_them(body: dict[str, object], field: str, expected: str) -> None:
    error = InvalidRequestError("x", [Violation(field, "no")])
    assert ResponseFieldNames(body, Conversation(body)).error(error).violations[0].field == expected


def test_items_that_take_long_to_convert_are_refused_by_their_number() -> None:
    with pytest.raises(InvalidRequestError, match=r"input: 10,001 items; the limit is 10,000"):
        ResponseRequest.from_json({"input": [{"role": "user", "content": "a"}] * 10_001})
