"""The `gradellm` object of a request for the upstream, and what its prompt is made of."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm_gateway.upstream.followed_request import FollowedRequest

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]


def request(**fields: Any) -> FollowedRequest:
    return FollowedRequest.from_json({"messages": MESSAGES, "gradellm": {}, **fields})


def test_keywords_extras_and_segments_are_apart() -> None:
    own = {"resolution": "word", "pictures": True, "citations": True, "segments": {"a": [1, 0, 2]}, "tokens": [0]}
    found = request(stream=True, gradellm=own)
    assert found.keywords == {"resolution": "word", "tokens": [0]}
    assert (found.extras.pictures, found.extras.citations) == (True, True)
    assert found.segments == {"a": (1, 0, 2)}


def test_plain_messages_are_rendered_by_the_explainer() -> None:
    assert request().plain_messages == tuple(MESSAGES)
    assert request(tools=[], reasoning_effort=None).plain_messages == tuple(MESSAGES)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None}]
    assert request(messages=parts).plain_messages == ({"role": "user", "content": "Hi"},)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{}]},
        {"chat_template": "x"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [3]},
        {"messages": None},
    ],
)
def test_other_prompts_are_known_by_their_ids_only(fields: dict[str, Any]) -> None:
    assert request(**fields).plain_messages is None


def test_log_probabilities_of_constrained_sampling_are_not_the_models() -> None:
    assert request().has_free_logprobs
    assert not request(response_format={"type": "json_object"}).has_free_logprobs
