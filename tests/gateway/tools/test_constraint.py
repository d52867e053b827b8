"""Grammars of calls: what they accept is a call for the parser of the same name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm.parsers.registry import CALL_PARSERS
from gradellm_gateway.tools.constraint import call_grammar

PROPERTIES = {
    "city": {"type": "string"},
    "n": {"type": "integer"},
    "u": {"enum": ["a", "b"]},
    "l": {"type": "array", "items": {"type": "string"}},
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]}},
    },
    {"type": "function", "function": {"name": "g"}},
]
F, G = '{"name": "f", "NAME": {"city": "Bonn", "n": 2, "l": ["x"]}}', '{"name": "g", "NAME": {"a": 1}}'
HERMES = "<tool_call>\n{}\n</tool_call>".replace("{}", F.replace("NAME", "arguments"))
XML = (
    "<tool_call>\n<function=f>\n<parameter=city>\nBonn\nam Rhein\n</parameter>\n<parameter=u>\nb\n</parameter>\n"
    '<parameter=l>\n["x"]\n</parameter>\n</function>\n</tool_call>'
)
EMPTY_XML = "<tool_call>\n<function=g>\n</function>\n</tool_call>"
ACCEPTED = {
    "hermes": [HERMES, f"{HERMES}\n{HERMES}"],
    "llama3_json": [F.replace("NAME", "parameters"), f"{F}; {G}".replace("NAME", "parameters")],
    "mistral": [
        f"[TOOL_CALLS][{F}]".replace("NAME", "arguments"),
        f"[TOOL_CALLS][{F}, {G}]".replace("NAME", "arguments"),
    ],
    "qwen3_coder": [XML, f"{XML}\n{EMPTY_XML}"],
}
REFUSED = ["Hello", "", '{"name": "h", "parameters": {}}', "<tool_call>\n{}\n</tool_call>", "[TOOL_CALLS][]"]


def accepts(grammar: str, text: str) -> bool:
    """Whether a text is one of a grammar, by llguidance with a token a byte."""
    llguidance = pytest.importorskip("llguidance")
    tokenizer = llguidance.LLTokenizer("byte")
    source = llguidance.grammar_from("grammar", grammar)
    assert llguidance.LLMatcher.validate_grammar(source, tokenizer) == ""
    matcher = llguidance.LLMatcher(tokenizer, source)
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@pytest.mark.parametrize("parser", ACCEPTED)
def test_calls_are_accepted_and_nothing_else(parser: str) -> None:
    one, two = ACCEPTED[parser]
    for text in ACCEPTED[parser]:
        calls = CALL_PARSERS[parser](TOOLS)
        calls.push(text)
        calls.finish()
        assert calls.calls
        assert all(call.is_complete for call in calls.calls)
        assert json.loads(calls.calls[0].arguments)["l"] == ["x"]
        assert accepts(call_grammar(parser, TOOLS, is_parallel=True), text)
    single = call_grammar(parser, TOOLS, is_parallel=False)
    assert accepts(single, one)
    assert not accepts(single, two)
    assert not any(accepts(single, text) for text in REFUSED)
    assert not accepts(call_grammar(parser, TOOLS[1:], is_parallel=True), one)


def test_every_parser_has_a_grammar_and_markers_may_be_tokens() -> None:
    ids = {"<tool_call>": 5, "</tool_call>": 6, "[TOOL_CALLS]": 7, "[ARGS]": 8}
    for parser in CALL_PARSERS:
        grammar = call_grammar(parser, TOOLS, is_parallel=True, marker_ids=ids)
        assert ("<[5]>" in grammar) == (parser in ("hermes", "qwen3_coder", "qwen3_json", "qwen3_xml"))
        assert ("<[8]>" in grammar) == (parser == "mistral")


@pytest.mark.parametrize("open_by", [{}, {"additionalProperties": True}, {"patternProperties": {"^x": {}}}])
def test_arguments_have_no_properties_that_the_tool_does_not_name(open_by: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, **open_by}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    grammar = call_grammar("llama3_json", tools, is_parallel=False)
    assert accepts(grammar, '{"name": "f", "parameters": {"n": 2}}')
    assert accepts(grammar, '{"name": "f", "parameters": {"n": 2, "x": 1}}') == bool(open_by)
