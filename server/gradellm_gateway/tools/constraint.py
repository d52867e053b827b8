"""Grammars of calls, for answers that must call a tool: in the model's own form, each with its tool's schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["call_grammar"]

# The white space of Python's json.dumps, which models know.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY = {"type": "object"}
# Keywords that say what other properties an object may have.
_OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}


def call_grammar(
    parser: str, tools: Sequence[Mapping[str, Any]], *, is_parallel: bool, marker_ids: Mapping[str, int] | None = None
) -> str:
    """Return a grammar in llguidance's Lark of one call, or of one and more.

    Args:
        parser: the form of calls, by the name of its parser.
        tools: those that may be called.
        is_parallel: whether there may be several calls.
        marker_ids: ids of markers that are special tokens.
    """
    return _FORMS[parser](tools, is_parallel, marker_ids or {})


def _hermes(tools: Sequence[Mapping[str, Any]], is_parallel: bool, marker_ids: Mapping[str, int]) -> str:
    opening, closing = (_marker(each, marker_ids) for each in ("<tool_call>", "</tool_call>"))
    rules = [f'call: {opening} "\\n" ({_names("call", tools)}) "\\n" {closing}']
    rules += _json_calls(tools, "arguments")
    return _start('"\\n" call', is_parallel, rules)


def _llama3_json(tools: Sequence[Mapping[str, Any]], is_parallel: bool, marker_ids: Mapping[str, int]) -> str:
    rules = [f"call: {_names('call', tools)}", *_json_calls(tools, "parameters")]
    return _start('"; " call', is_parallel, rules)


def _mistral(tools: Sequence[Mapping[str, Any]], is_parallel: bool, marker_ids: Mapping[str, int]) -> str:
    opening = _marker("[TOOL_CALLS]", marker_ids)
    if "[ARGS]" in marker_ids:  # of tokenizer 11 and later: a name and arguments
        separator = _marker("[ARGS]", marker_ids)
        rules = [f"call: {opening} ({_names('call', tools)})"]
        for index, tool in enumerate(tools):
            rules.append(f"call_{index}: {_text(tool['function']['name'])} {separator} arguments_{index}")
            rules.append(_arguments(index, tool))
        return _start("call", is_parallel, rules)
    rules = [f"call: {_names('call', tools)}", *_json_calls(tools, "arguments")]
    more = ' (", " call)*' if is_parallel else ""
    return "\n".join([f'start: {opening} "[" call{more} "]"', *rules])


def _qwen3_coder(tools: Sequence[Mapping[str, Any]], is_parallel: bool, marker_ids: Mapping[str, int]) -> str:
    opening, closing = (_marker(each, marker_ids) for each in ("<tool_call>", "</tool_call>"))
    rules = [f'call: {opening} "\\n" ({_names("call", tools)}) "\\n" {closing}', r"TEXT: /[^<]*\n/"]
    for index, tool in enumerate(tools):
        parameters = tool["function"].get("parameters") or {}
        required, parts = parameters.get("required") or (), []
        properties = parameters.get("properties")
        for number, (key, schema) in enumerate((properties if isinstance(properties, Mapping) else {}).items()):
            name = f"value_{index}_{number}"
            value = _value(schema, parameters)
            opened, closed = _text(f"<parameter={key}>\n"), _text("</parameter>\n")
            parts.append(f"({opened} {name} {closed}){'' if key in required else '?'}")
            rules.append(f"{name}: {value}" if value == "TEXT" else f'{name}: ({value}) "\\n"')
        function = tool["function"]["name"]
        begin, end = _text(f"<function={function}>\n"), _text("</function>")
        rules.append(f"call_{index}: {begin} {' '.join(parts)} {end}")
    return _start('"\\n" call', is_parallel, rules)


_FORMS: dict[str, Callable[[Sequence[Mapping[str, Any]], bool, Mapping[str, int]], str]] = {
    "hermes": _hermes,
    "llama3_json": _llama3_json,
    "llama4_json": _llama3_json,
    "mistral": _mistral,
    "qwen3_coder": _qwen3_coder,
    "qwen3_json": _hermes,
    "qwen3_xml": _qwen3_coder,
}


def _start(next_call: str, is_parallel: bool, rules: Sequence[str]) -> str:
    return "\n".join([f"start: call{f' ({next_call})*' if is_parallel else ''}", *rules])


def _names(rule: str, tools: Sequence[object]) -> str:
    return " | ".join(f"{rule}_{index}" for index in range(len(tools)))


def _json_calls(tools: Sequence[Mapping[str, Any]], member: str) -> list[str]:
    """Return the rules of calls as objects, one for each tool, with its arguments."""
    rules = []
    for index, tool in enumerate(tools):
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        begin = _text(f'{{"name": {name}, "{member}": ')
        rules += [f'call_{index}: {begin} arguments_{index} "}}"', _arguments(index, tool)]
    return rules


def _arguments(index: int, tool: Mapping[str, Any]) -> str:
    return f"arguments_{index}: {_json(_closed(tool['function'].get('parameters') or _ANY))}"


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool's parameters without others than its properties, unless it speaks of others.

    Small models else go on with words of the schema, such as a "type".
    """
    is_closed = "properties" in schema and schema.keys().isdisjoint(_OPEN)
    return {**schema, "additionalProperties": False} if is_closed else schema


def _value(schema: object, parameters: Mapping[str, Any]) -> str:
    """Return the rule of a parameter in XML: a text without tags and with a line's end, a choice, or JSON."""
    if not isinstance(schema, Mapping) or not schema:
        return "TEXT"
    choices = schema.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(each, str) for each in choices):
        return " | ".join(map(_text, choices))
    if schema.get("type") == "string":
        return "TEXT"
    definitions = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    return _json({**definitions, **schema})


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _FORM}, ensure_ascii=True)}"


def _text(value: str) -> str:
    """Return a text as a literal of Lark."""
    return json.dumps(value, ensure_ascii=False)


def _marker(text: str, marker_ids: Mapping[str, int]) -> str:
    """Return a marker: a special token by its id, or its text."""
    return f"<[{marker_ids[text]}]>" if text in marker_ids else _text(text)
