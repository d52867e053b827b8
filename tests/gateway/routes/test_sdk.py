"""Attribution, evaluation and server information by plain HTTP."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from gradellm import Client
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post


@pytest.mark.parametrize(
    "body",
    [
        {"colour": 1},
        {"raw_scores": "false"},
        {"scores": 3},
        {"self": 1},
        {"segments": {"a": 3}},
        {"scores": {"a": [1]}},
        {"scores": {"a": {"z": [1]}}},
        {"explanation": {}},
        {"\ud800": 1},
    ],
)
def test_keywords_that_are_none_are_refused(url: str, body: dict[str, Any]) -> None:
    status, _, said = post(f"{url}/v1/gradellm/evaluate", {"messages": MESSAGES, **body})
    assert status == 400
    assert json.loads(said)["error"]["type"] == "invalid_request_error"
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "\ud800": 1})
    assert status == 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("attribute", {"prompt": "", "completion": "a"}, "prompt"),
        ("attribute", {"prompt": "a"}, "completion"),
        ("attribute", {"prompt": "a", "completion": "b", "method": "nope"}, "method"),
        (
            "attribute",
            {"prompt": "a", "completion": "b", "attribution_seed": -1, "method": "random"},
            "attribution_seed",
        ),
        ("attribute", {"prompt": "a", "completion": "b", "target": -1}, "target"),
        ("attribute", {"prompt": "a", "completion": "b", "segments": {"x": [0, 9]}}, "segments.x"),
        ("attribute", {"prompt": "a" * 9000, "completion": "b"}, "prompt"),
        ("attribute", {"prompt_ids": [-1], "completion": "b"}, "prompt_ids[0]"),
        ("attribute", {"prompt": "a", "completion": "b", "max_new_tokens": 1}, "max_new_tokens"),
        ("attribute", {"prompt": "a", "completion": "b", "citations": True}, "citations"),
        ("evaluate", {"prompt": "a", "pictures": True}, "pictures"),
        ("evaluate", {"prompt": "a", "methods": {"x": {"method": "nope"}}}, "methods"),
        ("evaluate", {"prompt": "a", "pis": [2]}, "pis"),
        ("evaluate", {"prompt": "a", "perturb": "all"}, "perturb"),
        ("evaluate", {"prompt": "a", "raw_scores": 1}, "raw_scores"),
        ("evaluate", {"prompt": "a", "completion": "b", "scores": {"x": {"y": [1]}}}, "scores.x.y"),
        ("evaluate", {"prompt": "a", "completion": "b", "scores": {"x": [1]}}, "scores.x"),
    ],
)
def test_our_own_routes_name_the_callers_keywords(url: str, path: str, body: dict[str, Any], param: str) -> None:
    status, _, said = post(f"{url}/v1/gradellm/{path}", body)
    assert status == 400
    assert json.loads(said)["error"]["param"] == param


def events(said: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_attribute_and_evaluate(url: str, server: RunningServer) -> None:
    fields: dict[str, Any] = {"messages": MESSAGES, "completion": " there was", "method": "saliency"}
    status, _, said = post(f"{url}/v1/gradellm/attribute", fields)
    assert status == 200
    rows = [event["attribution"]["scores"] for event in events(said) if "attribution" in event]
    with Client(server.address) as client:
        expected = client.attribute(messages=MESSAGES, completion=" there was", method="saliency")
    assert rows[0] == pytest.approx(expected.scores[0], abs=1e-6)
    chosen = expected.token_indexes("was")
    for tokens in ("was", list(chosen), [[7, 10]]):
        status, _, said = post(f"{url}/v1/gradellm/attribute", {**fields, "tokens": tokens})
        assert status == 200
        some = [event["attribution"] for event in events(said) if "attribution" in event]
        assert [row["token_index"] for row in some] == list(chosen)
        assert some[0]["scores"] == pytest.approx(expected.scores[chosen[0]], abs=1e-6)
    status, _, said = post(f"{url}/v1/gradellm/attribute", {**fields, "pictures": True})
    assert status == 200
    words = [word["text"] for event in events(said) for word in event.get("words", ())]
    assert words == ["there", "was"]
    assert "answer" in events(said)[-1]
    fields = {"messages": MESSAGES, "max_new_tokens": 2, "pis": [0.5], "segments": {"a": [0, 0, 4]}}
    status, _, said = post(f"{url}/v1/gradellm/evaluate", fields)
    assert status == 200
    assert [event for event in events(said) if "summary" in event]
    status, _, said = post(f"{url}/v1/gradellm/evaluate", {**fields, "pis": [2]})
    assert status == 400
    assert "pis" in json.loads(said)["error"]["param"]


def test_info(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/gradellm/info") as message_of:
        model = json.load(message_of)["model"]
    assert model["family"] == "llama"
    assert "/" not in model["name"]
