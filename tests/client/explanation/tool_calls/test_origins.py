"""Calls of tools in a completion, and the parts of the conversation that they came from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gradellm import Attribution, Explanation, InvalidExplanationError, Source
from gradellm.explanation.tool_calls import tool_calls
from support.tools.answers import PROMPT, called


def test_each_name_and_argument_has_its_sources() -> None:
    (call,) = called().tool_calls(parser="hermes")
    assert (call.index, call.name, call.arguments) == (0, "weather", '{"city": "Bonn", "n": 2}')
    assert call.name_tokens == (2, 3)
    assert call.arguments_tokens == (4, 5, 6, 7, 8, 9)
    largest = call.name_sources[0]
    assert (largest.kind, largest.label, largest.message, largest.score) == ("tool", "weather", None, 6.0)
    assert largest.share == pytest.approx(6 / (6 + 5 * 0.5))
    city, number = call.values
    assert (city.name, city.tokens) == ("city", (4, 5, 6, 7))  # the tokens of its quotes, too
    assert (city.sources[0].kind, city.sources[0].label, city.sources[0].message) == ("segment", "town", 0)
    assert (number.name, number.tokens) == ("n", (8,))
    assert (number.sources[0].kind, number.sources[0].label, number.sources[0].message) == ("message", "tool", 1)
    for sources in (call.sources, city.sources, number.sources):
        assert sum(source.share for source in sources) == pytest.approx(1)
        assert len(sources) == len(PROMPT)
    assert json.loads(json.dumps(call.to_dict()))["values"][0]["sources"][0]["label"] == "town"


def test_scores_of_segments_are_enough() -> None:
    labels = ("template", "tool:weather", "tool:time", "user", "town", "tool")
    sources = tuple(Source(label, (index,)) for index, label in enumerate(labels))
    (call,) = called(sources=sources).tool_calls(parser="hermes")
    assert (call.name_sources[0].kind, call.name_sources[0].label) == ("tool", "weather")


def test_the_earlier_completion_is_a_source() -> None:
    loaded = called()
    tokens = tuple(replace(token, source_index=6 + token.index) for token in loaded.tokens)
    rows = tuple(
        Attribution(row.token_index, (*row.scores, *[9.0] * row.token_index), (), 0, None)
        for row in loaded.attributions
    )
    (call,) = replace(loaded, tokens=tokens, attributions=rows).tool_calls(parser="hermes")
    assert call.sources[0].kind == "completion"


def test_tokens_that_were_not_explained_have_no_sources() -> None:
    loaded = called()
    (call,) = replace(loaded, attributions=loaded.attributions[:4]).tool_calls(parser="hermes")
    assert call.name_sources
    assert [value.sources for value in call.values] == [(), ()]


def test_the_parser_is_the_models() -> None:
    with pytest.raises(InvalidExplanationError, match=r"parser: must be one of hermes, .*the model's is not known"):
        called().tool_calls()
    with pytest.raises(InvalidExplanationError, match="not 'x'"):
        called().tool_calls(parser="x")
    loaded = called()
    model = replace(loaded.provenance.model, tool_call_parser="hermes")
    known = replace(loaded, started=replace(loaded.started, provenance=replace(loaded.provenance, model=model)))
    assert [call.name for call in known.tool_calls()] == ["weather"]
    assert called().tool_calls(parser="mistral") == ()
    assert Explanation.from_json(known.to_json()) == known


def test_markers_that_are_special_tokens_have_their_text() -> None:
    loaded = called()
    first, *others = loaded.tokens
    shifted = (replace(token, start=token.start - first.end, end=token.end - first.end) for token in others)
    hidden = replace(loaded, tokens=(replace(first, text="", special=True, end=0), *shifted))
    assert hidden.tool_calls(parser="hermes") == ()
    (call,) = tool_calls(hidden, parser="hermes", special_texts={50: "<tool_call>"})
    assert call.name_tokens == (2, 3)
