"""A call as an object, in a parser that holds it back."""

from __future__ import annotations

from gradellm.parsers.hermes import HermesParser
from gradellm.parsers.json_call import ArgumentsReader, JsonCall


def test_a_call_begins_when_its_arguments_do() -> None:
    parser = HermesParser()
    call = JsonCall(parser)
    parser.open("")
    for character in '{"name": "f", "arguments": ':
        call.push(character)
    assert not call.is_begun
    call.push("{")
    assert call.is_begun
    assert [(delta.kind, delta.text) for delta in parser.take()] == [("name", "f"), ("arguments", "{")]


def test_values_have_places_in_the_text() -> None:
    reader = ArgumentsReader(10)
    for character in '{"a": 1} and':
        reader.push(character)
    assert reader.is_done
    assert not reader.is_failed
    assert [(value.name, value.start, value.end) for value in reader.values] == [("a", 16, 17)]
