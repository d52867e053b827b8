"""Grammars that cannot be compiled are refused by the words of the wire, with the place in a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm_engine import InvalidRequestError, StructuredOutput
from gradellm_engine.structured.compiler import GrammarCompiler
from gradellm_engine.structured.grammar_source import compile_error, grammar_source
from gradellm_engine.tokenization.encoder import TextEncoder


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"items": {"uniqueItems": True}}}}, '"uniqueItems" at #/properties/a/items/uniqueItems'),
        ({"anyOf": [{}, {"not": {}, "if": {}}]}, '"not" at #/anyOf/1/not'),
        ({"items": {"format": "colour"}}, 'at #/items/format: format "colour"'),
        ({"properties": {"a": {"pattern": "(a"}}}, "at #/properties/a: regex parse error"),
        ({"properties": {"a": {"type": "texts"}}}, "at #/properties/a: Invalid type"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "at #/properties/a: Pointer '/$defs/b' does not exist"),
        ({"$defs": {"b": {"minLength": -1}}, "items": {"$ref": "#/$defs/b"}}, "at #/$defs/b: "),
        ({"items": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "at #/items/oneOf: oneOf is supported only"),
        ({"$ref": "#"}, "no text that fits"),
        ({"allOf": [{"$ref": "#"}]}, "no text that fits"),
        (False, "is false"),
    ],
)
def test_a_schema_that_cannot_be_kept_names_keyword_and_place(
    compiler: GrammarCompiler, schema: Any, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compiler.start(StructuredOutput(json_schema=json.dumps(schema)))
    assert caught.value.field == "structured_output.json_schema"
    assert words in caught.value.description


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (StructuredOutput(regex="(a"), "unclosed group"),
        (StructuredOutput(regex=r"(a)\1"), "backreferences"),
        (StructuredOutput(grammar='start: "a" b'), 'unknown name: "b"'),
        (StructuredOutput(grammar='root ::= "a" ('), "neither Lark nor GBNF"),
    ],
)
def test_a_grammar_that_cannot_be_read_says_why(
    compiler: GrammarCompiler, settings: StructuredOutput, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compiler.start(settings)
    assert caught.value.field == settings.field
    assert words in caught.value.description


def test_a_schema_with_several_faults_of_a_kind_gets_no_place() -> None:
    schema = StructuredOutput(json_schema='{"anyOf": [{"oneOf": [{}]}, {"oneOf": [{}]}]}')
    error = compile_error(schema, "oneOf constraints are not supported.")
    assert error.description.startswith("oneOf is supported only")


@pytest.mark.parametrize(
    ("schema", "text", "is_allowed"),
    [
        ({"properties": {"é": {"type": "array"}}}, r'{"é": []}', True),
        ({"properties": {"é": {"type": "array"}}}, r'{"\u00e9": 1}', False),
        ({"patternProperties": {"^x_": {"type": "array"}}}, r'{"\u0078_": 1}', False),
        ({"properties": {"a": {"type": "array"}}}, r'{"b\n\"": 1}', True),
        ({"properties": {"a": {"enum": ["\x01"]}}}, r'{"a": "\u0001"}', True),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1, "a": "x"}', False),
    ],
)
def test_a_name_cannot_be_written_past_its_schema(
    compiler: GrammarCompiler, encoder: TextEncoder, schema: Any, text: str, is_allowed: bool
) -> None:
    settings = StructuredOutput(json_schema=json.dumps({"type": "object", **schema}))
    ids = encoder.tokenizer.encode(text, add_special_tokens=False)
    if is_allowed:
        assert compiler.start(settings, ids).allowed_tokens()
    else:
        with pytest.raises(InvalidRequestError, match="not allow"):
            compiler.start(settings, ids)


def test_true_is_any_json_and_a_json_object_an_object() -> None:
    assert json.loads(grammar_source(StructuredOutput(json_schema="true")))
    assert '"object"' in grammar_source(StructuredOutput(json_object=True))
