"""Texts to token ids, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm import AsyncClient, Client
from gradellm_gateway.tools.forms import AnswerForms
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post
from support.tools.templates import SHORT


def answer(url: str, path: str, body: Any) -> tuple[int, Any]:
    status, _, said = post(f"{url}{path}", body)
    return status, json.loads(said)


def test_a_text_and_its_ids(url: str, server: RunningServer) -> None:
    with Client(server.address) as client:
        expected, info = client.tokenize("Once upon a time"), client.server_info()
    ids = [token.id for token in expected.tokens]
    status, said = answer(url, "/tokenize", {"model": "gradellm", "prompt": "Once upon a time"})
    assert status == 200
    assert said == {"count": len(ids), "max_model_len": info.model.context_tokens, "tokens": ids, "token_strs": None}
    _, said = answer(url, "/tokenize", {"prompt": "Once upon a time", "return_token_strs": True})
    assert said["token_strs"] == [token.text for token in expected.tokens]
    assert answer(url, "/detokenize", {"tokens": ids}) == (200, {"prompt": f"<s>{expected.prompt_text}"})
    assert answer(url, "/detokenize", {"tokens": []}) == (200, {"prompt": ""})


def test_tokens_that_the_tokenizer_adds_can_be_left_out(url: str, server: RunningServer) -> None:
    with Client(server.address) as client:
        tokens = client.tokenize("Once").tokens
    _, said = answer(url, "/tokenize", {"prompt": "Once", "add_special_tokens": False})
    assert said["tokens"] == [token.id for token in tokens if token.end > token.start]
    assert said["count"] == len(said["tokens"]) < len(tokens)


def test_a_conversation(url: str, server: RunningServer) -> None:
    with Client(server.address) as client:
        expected = client.tokenize(messages=MESSAGES)
    _, said = answer(url, "/tokenize", {"messages": MESSAGES})
    assert said["tokens"] == [token.id for token in expected.tokens]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a" * 9000}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}, "model"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": 1}, "add_generation_prompt"),
        (
            "/tokenize",
            {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs.messages",
        ),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, True]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 1 << 40]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1] * 9000}, "tokens"),
    ],
)
def test_requests_that_cannot_be_are_refused_by_field(url: str, path: str, body: Any, param: str) -> None:
    status, said = answer(url, path, body)
    assert status in (400, 404)
    assert said["error"]["param"] == param


def test_a_request_that_is_no_object_is_refused(url: str) -> None:
    assert answer(url, "/tokenize", [])[0] == 400


def test_options_of_the_chat_template(url: str, server: RunningServer) -> None:
    conversation = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    with Client(server.address) as client:
        whole = client.tokenize(messages=conversation)
        without = client.tokenize(messages=conversation, add_generation_prompt=False)
        continued = client.tokenize(messages=conversation, add_generation_prompt=False, continue_final_message=True)
    assert len({len(whole.tokens), len(without.tokens), len(continued.tokens)}) > 1
    for expected, options in (
        (without, {"add_generation_prompt": False}),
        (continued, {"add_generation_prompt": False, "continue_final_message": True}),
        (whole, {"chat_template_kwargs": {"enable_thinking": False}, "tools": []}),
    ):
        _, said = answer(url, "/tokenize", {"messages": conversation, **options})
        assert said["tokens"] == [token.id for token in expected.tokens]


def test_tools_are_shown_as_in_a_chat(url: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [{"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}]
    plain = answer(url, "/tokenize", {"messages": MESSAGES})[1]
    assert answer(url, "/tokenize", {"messages": MESSAGES, "tools": tools})[1] == plain  # the template has no tools
    monkeypatch.setattr(server.engine.model.tokenizer, "chat_template", SHORT)

    async def unknown(client: AsyncClient) -> None:
        """As for a caller that may not ask: the server has looked at its template when it started."""

    monkeypatch.setattr(AnswerForms, "_model", staticmethod(unknown))
    with Client(server.address) as client:
        expected = client.tokenize(messages=MESSAGES, tools=tools)
    _, said = answer(url, "/tokenize", {"messages": MESSAGES, "tools": tools})
    assert said["tokens"] == [token.id for token in expected.tokens]
    status, said = answer(url, "/tokenize", {"messages": MESSAGES, "tools": [{"type": "web_search"}]})
    assert (status, said["error"]["param"]) == (400, "tools[0].type")
