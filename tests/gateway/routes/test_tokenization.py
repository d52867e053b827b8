"""Texts to token ids, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm import Client
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post


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
        ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
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
