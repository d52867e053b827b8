"""Logged chats of the gateway without token ids: their prompts are made again as the gateway made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.conftest import running
from gradellm import Client
from gradellm.following.logged import logged_answers
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post
from support.tools.templates import HERMES

TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "time", "arguments": '{"at": "noon"}'}}
TURNS = [
    *MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call-1", "content": "It is noon."},
]
TEMPLATE = "{%- if shouts %}{{- 'LOUD ' }}{%- endif %}" + HERMES


@pytest.fixture(scope="module")
def tools_server(
    model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server of the demo model, with a chat template that has tools and an option."""
    folder = tmp_path_factory.mktemp("demo-tools")
    for path in model_path("demo").iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    running = RunningServer(Engine.load(str(folder)), ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "<|im_start|>"),
        ({"tools": [TOOL]}, "<tools>"),
        ({"tools": [TOOL], "tool_choice": "none"}, "<tools>"),
        ({"tools": [TOOL], "messages": TURNS}, "<tool_response>"),
        ({"chat_template_kwargs": {"shouts": True}}, "LOUD"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "It"}], "add_generation_prompt": False}, "It"),
    ],
)
def test_prompts_are_those_of_the_gateway(tools_server: RunningServer, fields: dict[str, Any], part: str) -> None:
    request = {"messages": MESSAGES, "max_tokens": 2, "temperature": 0, "return_token_ids": True, **fields}
    with running(tools_server.address) as url:
        status, _, said = post(f"{url}/v1/chat/completions", request)
    assert status == 200, said
    response = json.loads(said)
    ids = response.pop("prompt_token_ids")
    response["choices"][0].pop("token_ids")
    (answer,) = logged_answers({"request": request, "response": response}, {"method": "attention"})
    with Client(tools_server.address) as client:
        explanation = answer.explain(client)
    assert explanation.started is not None
    assert [token.id for token in explanation.started.prompt_tokens] == ids
    assert part in explanation.started.prompt_text
