"""The route of chats; test_chat.py beside this folder has what requests and answers mean."""

from __future__ import annotations

import json

from support.http.calls import MESSAGES, post


def test_another_model_is_refused_before_anything_is_generated(url: str) -> None:
    status, _, said = post(f"{url}/v1/chat/completions", {"model": "gpt-9", "messages": MESSAGES})
    assert (status, json.loads(said)["error"]["code"]) == (404, "model_not_found")
