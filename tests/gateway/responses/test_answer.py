"""Errors in the middle of a streamed response; test_responses.py among the routes has the rest."""

from __future__ import annotations

from gradellm_gateway.errors import error_object
from gradellm_gateway.responses.answer import ResponseAnswer
from gradellm_gateway.responses.request import ResponseRequest


def test_an_error_is_an_event() -> None:
    answer = ResponseAnswer(ResponseRequest.from_json({"input": "a"}), "m", "1")
    event = answer.failure(error_object("it broke", "server_error"))
    assert event == {
        "type": "error",
        "code": "server_error",
        "message": "it broke",
        "param": None,
        "sequence_number": 0,
    }
