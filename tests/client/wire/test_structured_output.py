"""Structured output's keywords become a message; what the wire cannot carry is refused by the keyword's name."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.requests import generate_request
from gradellm.wire.structured_output import structured_output


class Model:
    """What the SDK needs of a Pydantic model."""

    @classmethod
    def model_json_schema(cls) -> dict[str, str]:
        return {"type": "object"}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, None),
        ({"json_schema": None, "choice": None}, None),
        ({"json_object": False}, None),
        ({"json_object": True}, pb.StructuredOutput(json_object=True)),
        ({"json_schema": {"type": "object"}}, pb.StructuredOutput(json_schema='{"type": "object"}')),
        ({"json_schema": Model}, pb.StructuredOutput(json_schema='{"type": "object"}')),
        ({"json_schema": "{}"}, pb.StructuredOutput(json_schema="{}")),
        ({"json_schema": True}, pb.StructuredOutput(json_schema="true")),
        ({"regex": "a+"}, pb.StructuredOutput(regex="a+")),
        ({"grammar": 'start: "a"'}, pb.StructuredOutput(grammar='start: "a"')),
        ({"choice": ["a", "b"]}, pb.StructuredOutput(choice=pb.Choice(texts=["a", "b"]))),
    ],
)
def test_keywords_to_message(keywords: Any, message: pb.StructuredOutput | None) -> None:
    assert structured_output(keywords) == message
    request = generate_request("x", keywords)
    assert request.HasField("structured_output") == (message is not None)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"regex": "a", "json_schema": {}}, "regex"),
        ({"json_schema": [1]}, "json_schema"),
        ({"json_schema": {"a": object()}}, "json_schema"),
        ({"json_schema": {"a": float("nan")}}, "json_schema"),
        ({"json_object": 1}, "json_object"),
        ({"regex": 3}, "regex"),
        ({"regex": "\ud800"}, "regex"),
        ({"choice": "abc"}, "choice"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", 3]}, "choice[1]"),
    ],
)
def test_refusals_name_the_keyword(keywords: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        structured_output(keywords)
    assert [violation.field for violation in caught.value.violations] == [field]
