"""Chats with tools, by the SDK: the prompt, what calls came from, and the verification of a stored explanation."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import Client, InvalidRequestError
from gradellm.explanation.verification import verified
from server.conftest import RunningServer
from support.tools.templates import SHORT

TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CALL = '<tool_call>{"name": "g", "arguments": {"a": "b"}}</tool_call>'
CHAT: Any = [{"role": "user", "content": "Hello there"}]
HISTORY: Any = [
    *CHAT,
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]},
    {"role": "tool", "content": "noon"},
]


@pytest.fixture
def client(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(server.engine.model.tokenizer, "chat_template", SHORT)
    with Client(server.address) as client:
        yield client


def test_a_call_is_explained_by_tools_and_messages(client: Client) -> None:
    explanation = client.attribute(messages=CHAT, tools=TOOLS, completion=CALL)
    (call,) = explanation.tool_calls(parser="hermes")
    assert (call.name, call.arguments, [value.name for value in call.values]) == ("g", '{"a": "b"}', ["a"])
    assert "g" in explanation.text[slice(*_span(explanation, call.name_tokens))]
    parts = {(source.kind, source.label, source.message) for source in call.sources}
    assert parts == {("tool", "f", None), ("tool", "g", None), ("message", "user", 0), ("template", "", None)}
    assert sum(source.share for source in call.sources) == pytest.approx(1)
    by_segment = {part.label: part.score for part in explanation.parts("segment", range(*_range(call.name_tokens)))}
    named = {f"tool:{s.label}": s.score for s in call.name_sources if s.kind == "tool"}
    assert {label: by_segment[label] for label in named} == pytest.approx(named)


def test_scores_of_segments_name_the_tools(client: Client) -> None:
    explanation = client.attribute(messages=HISTORY, tools=TOOLS, completion="a", resolution="segment")
    labels = [source.label for source in explanation.sources]
    assert labels[:3] == ["tool:f", "template", "tool:g"]
    assert {"user", "assistant", "tool"} <= {*labels}


def test_a_stored_explanation_with_tools_is_verified(client: Client) -> None:
    explanation = client.explain(messages=CHAT, tools=TOOLS, max_new_tokens=3)
    assert verified(client, explanation).holds_strictly
    history = client.explain(messages=HISTORY, tools=TOOLS, max_new_tokens=3)
    assert verified(client, history).holds_strictly


def test_a_server_says_what_its_template_has(client: Client) -> None:
    assert not client.server_info().model.has_tools  # as the template was when it was loaded
    with pytest.raises(InvalidRequestError, match=r"tools\[0\]\.function\.name"):
        client.explain(messages=CHAT, tools=[{"type": "function", "function": {"name": "a b"}}])


def _span(explanation: Any, indexes: tuple[int, ...]) -> tuple[int, int]:
    tokens = [token for token in explanation.tokens if token.index in indexes]
    return tokens[0].start, tokens[-1].end


def _range(indexes: tuple[int, ...]) -> tuple[int, int]:
    return indexes[0], indexes[-1] + 1
