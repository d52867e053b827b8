"""The grammar of a request in llguidance's form, and its errors in the words of the wire contract."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from llguidance import LLMatcher, grammar_from

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.structured.schema_check import parse_schema, place_of, subschemas, without_idle_keywords
from gradellm_engine.structured.settings import StructuredOutput

# The white space of Python's json.dumps: models know it, and none writes spaces without end.
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# The compiler takes "\u0061" for another name than "a", so that its value would not be held to the schema of "a".
# Only schemas with control characters in their texts need that escape.
_ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}
_NEEDS_UNICODE_ESCAPE = re.compile(r"\\u00[01]")  # as json.dumps writes them
_MAX_QUOTED = 300  # characters of the compiler's message
_SEARCH_SECONDS = 0.5  # for the place of an error
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])", re.DOTALL)
_UNKNOWN_FORMAT = re.compile(r"Unknown format: (.*)", re.DOTALL)


def grammar_source(settings: StructuredOutput) -> str:
    """The grammar that llguidance compiles.

    Raises:
        InvalidRequestError: naming the field, and the place in a schema.
    """
    if settings.json_object:
        return _of_schema({"type": "object"})
    if settings.json_schema is not None:
        schema = parse_schema(settings.json_schema)
        if schema is False:
            raise InvalidRequestError(settings.field, "is false, which no JSON value satisfies")
        return _of_schema({} if schema is True else schema)
    if settings.regex is not None:
        return LLMatcher.grammar_from_regex(settings.regex)
    if settings.grammar is not None:
        try:
            return grammar_from("grammar", settings.grammar)
        except ValueError as error:
            raise InvalidRequestError(settings.field, f"is neither Lark nor GBNF: {_short(str(error))}") from None
    # One terminal, rather than alternatives of the parser, whose number is limited.
    texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in settings.choice)
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")


def compile_error(settings: StructuredOutput, message: str) -> InvalidRequestError:
    """The error of a grammar that llguidance refuses with a message, with the place in a schema where it is known."""
    message = _first_lines(message)
    if settings.json_schema is None:
        return InvalidRequestError(settings.field, f"cannot be compiled: {_short(message)}")
    schema = parse_schema(settings.json_schema)
    if (match := _UNIMPLEMENTED.search(message)) is not None:
        names = json.loads(match[1])
        places = ", ".join(f'"{name}" at {place_of(schema, name)}' for name in names)
        return InvalidRequestError(settings.field, f"not supported: {_short(places)}; leave it out")
    if (match := _UNKNOWN_FORMAT.search(message)) is not None:
        place = place_of(schema, "format", match[1])
        return InvalidRequestError(settings.field, f'at {place}: format "{_short(match[1])}" is not supported')
    if message.startswith("oneOf constraints"):
        where = f"at {place_of(schema, 'oneOf')}: " if str(settings.json_schema).count('"oneOf"') == 1 else ""
        message = "oneOf is supported only of branches that exclude each other; use anyOf"
        return InvalidRequestError(settings.field, where + message)
    return InvalidRequestError(settings.field, f"{_place(schema, message)}{_short(message)}")


def _place(schema: dict[str, Any] | bool, message: str) -> str:
    """The place of the smallest subschema that llguidance refuses with the same message; empty where none is."""
    if isinstance(schema, bool):
        return ""
    found = dict(subschemas(schema))
    definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    deadline = time.monotonic() + _SEARCH_SECONDS

    def is_refused(place: str) -> bool:
        alone = _of_schema({**definitions, **found[place]})
        return _first_lines(LLMatcher.validate_grammar(alone)).endswith(message)

    for place in reversed(found):  # the innermost first
        if time.monotonic() > deadline:
            return ""
        if is_refused(place):
            target = found[place].get("$ref")
            return f"at {target if target in found and is_refused(target) else place}: "
    return ""


def _of_schema(schema: dict[str, Any]) -> str:
    text = json.dumps(without_idle_keywords(schema), ensure_ascii=True)
    overrides = _SEPARATORS if _NEEDS_UNICODE_ESCAPE.search(text) else {**_SEPARATORS, **_ESCAPES}
    return LLMatcher.grammar_from_json_schema(text, overrides=overrides)  # type: ignore[arg-type]


def _first_lines(message: str) -> str:
    """A message without the compiler's picture of the source and its own state."""
    return message.split("<state>")[0].strip()


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _MAX_QUOTED else f"{line[:_MAX_QUOTED]}..."
