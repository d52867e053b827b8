"""Keywords of sampling and of the chat template reach the request, or are refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.requests import attribute_request, follow_request, generate_request, tokenize_request

MESSAGES = [("user", "Who?")]


def test_sampling_reaches_the_request() -> None:
    keywords: Any = {
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {5: 1, "6": -2.5},
        "min_new_tokens": 3,
        "ignore_eos": True,
        "stop_token_ids": [7, 8],
        "skip_special_tokens": False,
    }
    asked: Any = {**keywords, "attribution": None}
    request = generate_request("Once", asked)
    expected = {**keywords, "logit_bias": {5: 1.0, 6: -2.5}}
    assert request == pb.GenerateRequest(input=pb.Input(prompt="Once"), **expected)
    assert request.HasField("skip_special_tokens")


def test_neutral_values_are_sent() -> None:
    """They replace those of the model's generation_config.json."""
    request = generate_request("Once", {"min_p": 0, "repetition_penalty": 1, "frequency_penalty": 0, "temperature": 0})
    names = ("min_p", "repetition_penalty", "frequency_penalty", "temperature")
    assert [request.HasField(name) for name in names] == [True] * 4
    assert not request.HasField("presence_penalty")


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("min_p", {"min_p": "a"}),
        ("logit_bias", {"logit_bias": [1, 2]}),
        ("logit_bias['x']", {"logit_bias": {"x": 1}}),
        ("logit_bias[-5]", {"logit_bias": {-5: None}}),
        ("logit_bias['5']", {"logit_bias": {5: 1, "5": 1}}),
        ("logit_bias[2147483648]", {"logit_bias": {2**31: 1}}),
        ("logit_bias['" + "9" * 60 + "'... (str, 5000 in all)]", {"logit_bias": {"9" * 5000: 1}}),
        ("ignore_eos", {"ignore_eos": 1}),
        ("stop_token_ids[1]", {"stop_token_ids": [1, "a"]}),
        ("skip_special_tokens", {"skip_special_tokens": "no"}),
        ("chat_template_kwargs", {"messages": MESSAGES, "chat_template_kwargs": ["a"]}),
        ("chat_template_kwargs", {"messages": MESSAGES, "chat_template_kwargs": {"a": math.nan}}),
        ("chat_template_kwargs", {"messages": MESSAGES, "chat_template_kwargs": {"a": object()}}),
        ("continue_final_message", {"messages": MESSAGES, "continue_final_message": 1}),
        ("add_generation_prompt", {"messages": MESSAGES, "add_generation_prompt": "no"}),
        ("add_generation_prompt", {"add_generation_prompt": False}),
        ("continue_final_message", {"prompt_ids": [1], "continue_final_message": True}),
    ],
)
def test_other_values_are_refused_by_name(field: str, keywords: dict[str, Any]) -> None:
    prompt = None if {"messages", "prompt_ids"} & keywords.keys() else "Once"
    with pytest.raises(InvalidRequestError) as caught:
        generate_request(prompt, keywords)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]


def test_every_call_with_messages_takes_options_of_the_template() -> None:
    options: Any = {
        "messages": MESSAGES,
        "chat_template_kwargs": {"enable_thinking": False, "n": 3},
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    attributed: Any = {**options, "completion": "a"}
    inputs = [
        generate_request(None, options).input,
        attribute_request(None, attributed).input,
        follow_request(None, options).input,
        tokenize_request(None, options).input,
    ]
    for sent in inputs:
        assert json.loads(sent.chat_template_kwargs) == {"enable_thinking": False, "n": 3}
        assert sent.HasField("add_generation_prompt")
        assert (sent.add_generation_prompt, sent.continue_final_message) == (False, True)
