"""`response_format` and `structured_outputs`: answers that keep them, and refusals by the caller's field."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai
import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.chat import ChatRequest
from gradellm_gateway.structured.output_format import structured_output, text_format
from support.http.calls import MESSAGES, post

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def json_format(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("body", "keywords", "path"),
    [
        ({}, {}, ""),
        ({"response_format": {"type": "text"}}, {}, ""),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}, "response_format"),
        ({"response_format": json_format()}, {"json_schema": SCHEMA}, "response_format.json_schema.schema"),
        ({"response_format": json_format(strict=True)}, {"json_schema": SCHEMA}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{}"}}, {"json_schema": "{}"}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, {"regex": "a"}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, {"choice": ["a"]}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "g"}}, {"grammar": "g"}, "structured_outputs.grammar"),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": True, "regex": None}},
            {"json_object": True},
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"json_object": False, "regex": "a", "disable_additional_properties": False}},
            {"regex": "a"},
            "structured_outputs.regex",
        ),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            {"regex": "a"},
            "structured_outputs.regex",
        ),
    ],
)
def test_fields_to_keywords(body: Any, keywords: Any, path: str) -> None:
    assert structured_output(body) == (keywords, path)
    request = ChatRequest.from_json({"messages": MESSAGES, **body})
    assert {name: value for name, value in request.keywords.items() if name in keywords} == keywords


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "text", "colour": 1}}, "response_format.colour"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema"),
        ({"response_format": json_format(None)}, "response_format.json_schema.schema"),
        ({"response_format": json_format([])}, "response_format.json_schema.schema"),
        ({"response_format": json_format(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": json_format(colour="red")}, "response_format.json_schema.colour"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ],
)
def test_refusals_name_the_callers_field(body: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatRequest.from_json({"messages": MESSAGES, **body})
    assert [violation.field for violation in caught.value.violations] == [field]


def test_an_answer_by_a_schema(client: openai.OpenAI) -> None:
    answer: Any = client.chat.completions.create(  # type: ignore[call-overload]
        model="gradellm",
        messages=MESSAGES,
        max_tokens=100,
        temperature=1,
        seed=1,
        response_format=json_format(strict=True),
        extra_body={"gradellm": {}},
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"
    tokens = answer.gradellm["tokens"]
    assert tokens[0]["forced_by_grammar"]
    assert not all(token["forced_by_grammar"] for token in tokens)
    assert len(answer.gradellm["attributions"]) == len(tokens)
    assert json.loads(answer.gradellm["started"]["provenance"]["structured_output"]["json_schema"]) == SCHEMA


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"choice": ["left", "right"]}, "left|right"),
        ({"grammar": 'root ::= "x" [0-9]'}, "x[0-9]"),
    ],
)
def test_an_answer_by_a_field_of_vllm(client: openai.OpenAI, constraint: dict[str, Any], pattern: str) -> None:
    stream = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        max_tokens=20,
        stream=True,
        extra_body={"structured_outputs": constraint},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (
            {"response_format": json_format({"properties": {"a": {"not": {}}}})},
            "response_format.json_schema.schema",
            '"not" at #/properties/a/not',
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]", "empty"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "is not JSON"),
    ],
)
def test_what_the_server_refuses_is_a_400_with_the_place(url: str, body: Any, param: str, words: str) -> None:
    status, _, answer = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, **body})
    assert status == 400
    error = json.loads(answer)["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "keywords", "path"),
    [
        ({}, {}, ""),
        ({"text": {"verbosity": "medium"}}, {}, ""),
        ({"text": {"format": {"type": "text"}}}, {}, ""),
        ({"text": {"format": {"type": "json_object"}}}, {"json_object": True}, "text.format"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": SCHEMA}}},
            {"json_schema": SCHEMA},
            "text.format.schema",
        ),
        ({"structured_outputs": {"regex": "a"}}, {"regex": "a"}, "structured_outputs.regex"),
    ],
)
def test_formats_of_responses(body: Any, keywords: Any, path: str) -> None:
    assert text_format(body) == (keywords, path)
