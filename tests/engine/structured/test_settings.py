"""Settings of structured output: exactly one field, sizes checked before anything is read."""

from __future__ import annotations

import pytest

from gradellm_engine import InvalidRequestError, StructuredOutput
from gradellm_engine.structured.settings import MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({}, "structured_output", "exactly one"),
        ({"regex": "a", "json_object": True}, "structured_output", "json_object, regex"),
        ({"json_schema": ""}, "structured_output.json_schema", "empty"),
        ({"regex": ""}, "structured_output.regex", "empty"),
        ({"choice": ("a", "")}, "structured_output.choice[1]", "empty"),
        ({"json_schema": "x" * (MAX_SCHEMA_BYTES + 1)}, "structured_output.json_schema", "1,048,576"),
        ({"json_schema": "é" * (MAX_SCHEMA_BYTES // 2 + 1)}, "structured_output.json_schema", "1,048,576"),
        ({"grammar": "x" * (MAX_GRAMMAR_BYTES + 1)}, "structured_output.grammar", "65,536"),
        ({"regex": "x" * (MAX_REGEX_BYTES + 1)}, "structured_output.regex", "16,384"),
        ({"choice": ("a",) * (MAX_CHOICES + 1)}, "structured_output.choice", "10,000"),
        ({"choice": ("x" * 600_000,) * 2}, "structured_output.choice", "1,048,576"),
        ({"regex": "\ud800"}, "structured_output.regex", "surrogate"),
    ],
)
def test_refusals_name_the_field_and_the_limit(fields: dict[str, object], field: str, limit: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        StructuredOutput(**fields)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert limit in caught.value.description


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (StructuredOutput(json_schema="{}"), "json_schema"),
        (StructuredOutput(json_object=True), "json_object"),
        (StructuredOutput(grammar='start: "a"'), "grammar"),
        (StructuredOutput(regex="a"), "regex"),
        (StructuredOutput(choice=("a",)), "choice"),
    ],
)
def test_the_kind_is_the_field_that_is_set(settings: StructuredOutput, kind: str) -> None:
    assert settings.kind == kind
    assert settings.field == f"structured_output.{kind}"
    assert settings.num_characters == len(
        "".join(filter(None, (settings.json_schema, settings.grammar, settings.regex, *settings.choice)))
    )
