"""Usage in streams, as vLLM reports it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm_gateway.running_usage import usage_options
from support.http.calls import MESSAGES, post

BOTH = {"include_usage": True, "continuous_usage_stats": True}


def streamed(url: str, path: str, **body: Any) -> list[dict[str, Any]]:
    status, _, answer = post(f"{url}/v1/{path}", {"stream": True, "temperature": 1.3, "seed": 5, **body})
    assert status == 200, answer
    return [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, (False, False)),
        ({"include_usage": True}, (True, False)),
        (BOTH, (True, True)),
        ({"continuous_usage_stats": True}, (False, False)),  # as in vLLM
        ({"include_usage": None, "continuous_usage_stats": None}, (False, False)),
    ],
)
def test_options(options: dict[str, Any] | None, expected: tuple[bool, bool]) -> None:
    assert tuple(usage_options({"stream_options": options}).values()) == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": MESSAGES}),
        ("completions", {"prompt": "Once upon a time"}),
        ("completions", {"prompt": "Once upon a time", "echo": True}),
    ],
)
def test_every_chunk_counts_its_choice_so_far(url: str, path: str, body: dict[str, Any]) -> None:
    *chunks, last = streamed(url, path, max_tokens=5, n=2, stream_options=BOTH, **body)
    assert all(chunk["choices"] for chunk in chunks)
    for index in (0, 1):
        usages = [chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == [*([0] if counts[0] == 0 else []), 1, 2, 3, 4, 5, 5]
        assert {usage["prompt_tokens"] for usage in usages} == {usages[0]["prompt_tokens"]}
        assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
        assert usages[0]["prompt_tokens"] > 0
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 10


def test_other_streams_have_one_usage(url: str) -> None:
    *chunks, last = streamed(
        url, "chat/completions", messages=MESSAGES, max_tokens=3, stream_options={"include_usage": True}
    )
    assert not any("usage" in chunk for chunk in chunks)
    assert last["usage"]["completion_tokens"] == 3
