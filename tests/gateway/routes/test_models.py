"""The list of models."""

from __future__ import annotations

import openai
import pytest

from gradellm import Client
from server.conftest import RunningServer
from support.http.calls import MESSAGES


def test_models(client: openai.OpenAI, server: RunningServer) -> None:
    with Client(server.address) as own:
        name = own.server_info().model.name
    (model,) = client.models.list().data
    assert model.id == name
    assert client.models.retrieve(name).id == name
    client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.NotFoundError, match=r'"gpt-9.* is not served here'):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES, max_tokens=1)
