"""The list of models, and the names that requests may give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from gateway.conftest import running
from gradellm import Client
from gradellm_gateway.routes.backend import public_name
from server.conftest import RunningServer
from support.http.calls import MESSAGES, send


def test_the_model_is_listed_by_its_name_never_by_its_path(
    url: str, client: openai.OpenAI, server: RunningServer
) -> None:
    with Client(server.address) as own:
        told = own.server_info().model
    assert "/" in told.name
    name = Path(told.name).name
    status, _, said = send(url, "GET", "/v1/models")
    assert status == 200
    assert told.name not in json.dumps(said)
    (card,) = said["data"]
    assert (card["id"], card["root"], card["object"]) == (name, name, "model")
    assert card["max_model_len"] == told.context_tokens
    assert card["gradellm"]["model"]["name"] == name
    assert client.models.retrieve(name).id == name
    answer = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1)
    assert answer.model == name
    with pytest.raises(openai.NotFoundError, match=r'"gpt-9.* is not served here'):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_served_names_take_the_place_of_the_models_own(server: RunningServer) -> None:
    with running(server.address, settings={"served_names": ("tiny", "org/tiny-chat")}) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)  # pragma: allowlist secret
        assert [model.id for model in client.models.list().data] == ["tiny", "org/tiny-chat"]
        assert client.models.retrieve("org/tiny-chat").id == "org/tiny-chat"
        for name in ("tiny", "org/tiny-chat", "gradellm", ""):
            assert client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1).model == "tiny"
        with Client(server.address) as own, pytest.raises(openai.NotFoundError, match='"tiny" and "org/tiny-chat" are'):
            client.chat.completions.create(model=own.server_info().model.name, messages=MESSAGES, max_tokens=1)


def test_a_hub_id_is_a_name(server: RunningServer) -> None:
    with Client(server.address) as own:
        told = own.server_info().model
    assert public_name(replace(told, name="org/tiny", revision="abc")) == "org/tiny"
    assert public_name(replace(told, name="/models/tiny/", revision="")) == "tiny"
