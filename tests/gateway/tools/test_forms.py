"""How an answer is read: by flags, the model and the request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gradellm import InvalidRequestError, PermissionDeniedError
from gradellm_gateway.tools.answer import AnswerForm
from gradellm_gateway.tools.forms import AnswerForms
from gradellm_gateway.tools.request import ToolRequest
from support.tools.answers import called
from support.tools.scripted import ScriptedClient

TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]


def form(request: ToolRequest, forms: AnswerForms | None = None, **model: Any) -> tuple[AnswerForm, dict[str, Any]]:
    client: Any = ScriptedClient(called(), **model)
    client.ids = {"<tool_call>": 9}
    return asyncio.run((forms or AnswerForms()).of(client, request))


def test_the_parser_is_the_flags_or_the_models() -> None:
    auto = ToolRequest(TOOLS, "auto")
    found, keywords = form(auto, has_tools=True, tool_call_parser="hermes")
    assert (found.parser, found.reasoning, keywords) == ("hermes", "qwen3", {"tools": TOOLS})
    assert found.marker_ids == {"<tool_call>": 9}
    found, _ = form(auto, AnswerForms("mistral", "none"), has_tools=True, tool_call_parser="hermes")
    assert (found.parser, found.reasoning) == ("mistral", "none")
    found, keywords = form(ToolRequest(TOOLS, "none"), has_tools=True, tool_call_parser="hermes")
    assert (found.parser, keywords) == (None, {"tools": TOOLS})
    assert form(ToolRequest()) == (AnswerForm(ToolRequest(), None, "qwen3"), {})


def test_a_template_without_tools_answers_with_text(caplog: pytest.LogCaptureFixture) -> None:
    forms = AnswerForms()
    with caplog.at_level(logging.WARNING, "gradellm_gateway"):
        for choice in ("auto", "none"):
            found, keywords = form(ToolRequest(TOOLS, choice), forms)
            assert (found.parser, keywords) == (None, {})
    assert len(caplog.records) == 1
    assert "the model's chat template has no tools" in caplog.text
    with pytest.raises(InvalidRequestError, match="tool_choice: the model's chat template has no tools"):
        form(ToolRequest(TOOLS, "required"))


def test_an_unknown_form_answers_with_text(caplog: pytest.LogCaptureFixture) -> None:
    found, keywords = form(ToolRequest(TOOLS, "auto"), has_tools=True)
    assert (found.parser, keywords) == (None, {"tools": TOOLS})
    assert "no --tool-call-parser" in caplog.text
    with pytest.raises(InvalidRequestError, match="tool_choice: the form of the model's calls is not known"):
        form(ToolRequest(TOOLS, "named", "time"), has_tools=True)


def test_a_caller_that_may_not_ask_has_the_flags_form() -> None:
    class Denied(ScriptedClient):
        async def server_info(self, **keywords: Any) -> Any:
            raise PermissionDeniedError("no")

    client: Any = Denied(called())
    found, keywords = asyncio.run(AnswerForms("hermes").of(client, ToolRequest(TOOLS, "auto")))
    assert (found.parser, keywords) == ("hermes", {"tools": TOOLS})


def test_required_calls_are_constrained() -> None:
    known: Any = {"has_tools": True, "tool_call_parser": "hermes"}
    _, keywords = form(ToolRequest(TOOLS, "required"), **known)
    assert "weather" in keywords["grammar"]
    assert ")*" in keywords["grammar"]
    _, keywords = form(ToolRequest(TOOLS, "named", "time"), **known)
    assert "weather" not in keywords["grammar"]
    assert ")*" not in keywords["grammar"]
    assert keywords["tools"] == TOOLS
