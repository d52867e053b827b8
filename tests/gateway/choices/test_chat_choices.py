"""Sampling settings and several choices of a chat, called by OpenAI's own client, against the SDK's answers."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import openai
import pytest

from gradellm import Client, Explanation
from gradellm_gateway.chat import ChatRequest
from gradellm_gateway.choices.chat_choices import choice_keywords
from gradellm_gateway.sampling_fields import MAX_SEED
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post

SAMPLED: dict[str, Any] = {"max_tokens": 8, "temperature": 1.3, "seed": 5}


def undisturbed(server: RunningServer, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(messages=MESSAGES, **{"attribution": None, **keywords})


def content(url: str, **body: Any) -> str:
    status, _, answer = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, **body})
    assert status == 200, answer
    text: str = json.loads(answer)["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    ("body", "keywords"),
    [
        ({"min_p": 0.2}, {"min_p": 0.2}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": -1}, {}),
        ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
        ({"frequency_penalty": 2, "presence_penalty": 1}, {"frequency_penalty": 2, "presence_penalty": 1}),
        ({"logit_bias": {"100": 20, "5": -3}}, {"logit_bias": {100: 20, 5: -3}}),
        ({"min_tokens": 8, "stop": " "}, {"min_new_tokens": 8, "stop": " "}),
        ({"skip_special_tokens": False, "ignore_eos": True}, {"skip_special_tokens": False, "ignore_eos": True}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_fields_have_the_effect_of_the_keywords(
    url: str, server: RunningServer, body: dict[str, Any], keywords: dict[str, Any]
) -> None:
    expected = undisturbed(server, max_new_tokens=8, temperature=1.3, seed=5, **keywords)
    assert content(url, **SAMPLED, **body) == expected.text


def test_a_stop_token_ends_the_answer(url: str, server: RunningServer) -> None:
    tokens = undisturbed(server, max_new_tokens=8, temperature=1.3, seed=5).tokens
    ids = [token.id for token in tokens]
    end = next(index for index in range(2, 8) if ids[index] not in ids[:index])
    text = "".join(token.text for token in tokens[:end])
    assert content(url, **SAMPLED, stop_token_ids=[ids[end]]) == text


def test_choices_have_seeds_of_their_own_and_share_the_prompt(client: openai.OpenAI, server: RunningServer) -> None:
    answer: Any = client.chat.completions.create(model="gradellm", messages=MESSAGES, n=4, **SAMPLED)
    expected = [undisturbed(server, max_new_tokens=8, temperature=1.3, seed=5 + index) for index in range(4)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in answer.choices] == [each.text for each in expected]
    assert len({each.text for each in expected}) > 1
    assert answer.usage.prompt_tokens == len(expected[0].prompt_tokens)
    assert answer.usage.completion_tokens == sum(len(each.tokens) for each in expected)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_choices_are_streamed_with_their_index(client: openai.OpenAI, server: RunningServer) -> None:
    stream = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        n=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"gradellm": {}},
        **SAMPLED,
    )
    texts: dict[int, str] = defaultdict(str)
    rows: dict[int, int] = defaultdict(int)
    reasons: dict[int, str] = {}
    ids, usages = set(), []
    for chunk in stream:
        ids.add(chunk.id)
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            rows[choice.index] += "attribution" in (chunk.model_extra or {}).get("gradellm", {})
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    expected = [undisturbed(server, max_new_tokens=8, temperature=1.3, seed=5 + index) for index in range(3)]
    assert [texts[index] for index in range(3)] == [each.text for each in expected]
    assert [rows[index] for index in range(3)] == [len(each.tokens) for each in expected]
    assert reasons == dict.fromkeys(range(3), "length")
    assert len(ids) == 1
    assert [usage.completion_tokens for usage in usages] == [sum(len(each.tokens) for each in expected)]


def test_each_choice_has_its_own_explanation(url: str) -> None:
    body = {"messages": MESSAGES, "n": 2, "gradellm": {}, **SAMPLED}
    answer = json.loads(post(f"{url}/v1/chat/completions", body)[2])
    assert "gradellm" not in answer
    for choice in answer["choices"]:
        assert Explanation.from_json(json.dumps(choice["gradellm"])).text == choice["message"]["content"]


def test_the_prompt_is_read_once(url: str) -> None:
    messages = [{"role": "user", "content": "A prompt that no other test has: " + "foxes like rain. " * 8}]
    body = {"messages": messages, "n": 4, "gradellm": {}, **SAMPLED}
    answer = json.loads(post(f"{url}/v1/chat/completions", body)[2])
    usages = [choice["gradellm"]["finished"]["usage"] for choice in answer["choices"]]
    copied = sorted(usage["reused_prompt_tokens"] for usage in usages)
    assert copied[0] == 0
    assert copied[1] > usages[0]["prompt_tokens"] / 2


def test_an_error_of_all_choices_is_one_answer(url: str) -> None:
    for stream in (False, True):
        body = {"messages": MESSAGES, "n": 4, "max_tokens": 10**6, "stream": stream}
        status, _, answer = post(f"{url}/v1/chat/completions", body)
        assert (status, json.loads(answer)["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize(
    ("seed", "seeds"), [(None, [None] * 3), (7, [7, 8, 9]), (MAX_SEED - 1, [MAX_SEED - 1, MAX_SEED, 0]), (-1, [-1] * 3)]
)
def test_the_seeds_of_choices(seed: int | None, seeds: list[int | None]) -> None:
    request = ChatRequest.from_json({"messages": MESSAGES, "n": 3, "seed": seed})
    assert [keywords.get("seed") for keywords in choice_keywords(request)] == seeds
