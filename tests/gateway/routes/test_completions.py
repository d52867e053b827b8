"""Text completions, called by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest

from gradellm import Client, Explanation
from server.conftest import RunningServer
from support.http.calls import post

PROMPT = "Once upon a time"


def undisturbed(server: RunningServer, prompt: str = PROMPT, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(prompt, **keywords)


def ids_of(server: RunningServer, prompt: str = PROMPT) -> list[int]:
    with Client(server.address) as client:
        return [token.id for token in client.tokenize(prompt).tokens]


def answers(url: str, **body: Any) -> list[dict[str, Any]]:
    """The answer, or the chunks of a streamed one."""
    status, _, said = post(f"{url}/v1/completions", body)
    assert status == 200, said
    if not body.get("stream"):
        return [json.loads(said)]
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
    return "".join(part["text"] for part in parts)


def test_openais_client(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=16, attribution=None)
    answer = client.completions.create(model="gradellm", prompt=PROMPT)
    (choice,) = answer.choices
    assert (choice.text, choice.index, choice.finish_reason) == (expected.text, 0, "length")
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(expected.prompt_tokens), 16)
    assert choice.logprobs is None
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(model="gradellm", prompt=PROMPT, stream=True, stream_options=options)  # type: ignore[call-overload]
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected.text
    assert chunks[-1].usage == answer.usage


@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_a_prompt(url: str, server: RunningServer, stream: bool) -> None:
    other = "The cat sat"
    expected = [undisturbed(server, prompt, max_new_tokens=4, attribution=None) for prompt in (PROMPT, other)]
    texts = [each.text for each in expected]
    ids, other_ids = ids_of(server), ids_of(server, other)
    common = {"max_tokens": 4, "stream": stream}
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        assert text_of(answers(url, prompt=prompt, **common)) == texts[0]
    for prompt in ([PROMPT, other], [ids, other_ids]):
        chunks = answers(url, prompt=prompt, **common)
        assert [text_of(chunks, index) for index in (0, 1)] == texts
    whole = answers(url, prompt=[PROMPT, other], max_tokens=4)[0]
    assert whole["usage"]["prompt_tokens"] == len(ids) + len(other_ids)
    assert whole["usage"]["completion_tokens"] == sum(len(each.tokens) for each in expected)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_more_prompts_than_run_at_a_time(url: str, stream: bool) -> None:
    chunks = answers(url, prompt=[PROMPT] * 20, max_tokens=2, stream=stream)
    assert len({text_of(chunks, index) for index in range(20)}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_log_probabilities_of_the_prompt(url: str, server: RunningServer, stream: bool) -> None:
    expected = undisturbed(server, max_new_tokens=3, attribution=None, num_alternatives=2)
    with Client(server.address) as client:
        ids = ids_of(server)
        scored = client.attribute(prompt_ids=ids[:1], completion_ids=ids[1:], method="random", num_alternatives=2)
    chunks = answers(url, prompt=PROMPT, max_tokens=3, echo=True, logprobs=2, stream=stream)
    assert text_of(chunks) == PROMPT + expected.text
    parts = [part["logprobs"] for chunk in chunks for part in chunk["choices"] if part["logprobs"]]
    logprobs = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    rest = [token.logprob for token in (*scored.tokens, *expected.tokens)]
    assert logprobs["token_logprobs"][1:] == pytest.approx(rest, abs=1e-5)
    assert len(logprobs["tokens"]) == len(ids) + 3
    last = expected.tokens[-1]
    assert logprobs["text_offset"][-1] == len(PROMPT) + last.start
    top = logprobs["top_logprobs"][-1]
    best = {each.text: each.logprob for each in reversed(last.alternatives)}  # of equal texts the most probable
    assert top == pytest.approx(best, abs=1e-5)
    for token, logprob, choices in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        if choices is not None:
            assert choices[token] == logprob
            assert 1 <= len(choices) <= 3


def test_echo_of_the_prompt_alone(url: str, server: RunningServer) -> None:
    num_prompt = len(ids_of(server))
    for logprobs in (None, 0, 1):
        (answer,) = answers(url, prompt=PROMPT, max_tokens=0, echo=True, logprobs=logprobs)
        (choice,) = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == num_prompt
        assert (choice["logprobs"] is None) == (logprobs is None)
    assert math.isfinite(choice["logprobs"]["token_logprobs"][1])


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids(url: str, server: RunningServer, stream: bool) -> None:
    expected = undisturbed(server, max_new_tokens=3, attribution=None)
    for echo in (False, True):
        chunks = answers(url, prompt=PROMPT, max_tokens=3, return_token_ids=True, stream=stream, echo=echo)
        parts = [part for chunk in chunks for part in chunk["choices"]]
        assert [number for part in parts for number in part["token_ids"]] == [token.id for token in expected.tokens]
        assert [part["prompt_token_ids"] for part in parts if part["prompt_token_ids"]] == [ids_of(server)]
    assert "token_ids" not in answers(url, prompt=PROMPT, max_tokens=3)[0]["choices"][0]


def test_a_completion_is_explained_like_a_chat(url: str, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=3, segments={"who": (0, 4)})
    own = {"segments": {"who": [0, 4]}}
    (answer,) = answers(url, prompt=PROMPT, max_tokens=3, gradellm=own)
    found = Explanation.from_json(json.dumps(answer["gradellm"]))
    assert [list(row) for row in found.scores] == [pytest.approx(row, abs=1e-6) for row in expected.scores]
    chunks = answers(url, prompt=PROMPT, max_tokens=3, gradellm=own, stream=True)
    rows = [chunk["gradellm"]["attribution"]["scores"] for chunk in chunks if "attribution" in chunk["gradellm"]]
    assert rows == [pytest.approx(row, abs=1e-6) for row in expected.scores]
    (answer,) = answers(url, prompt=[PROMPT, PROMPT], max_tokens=3, gradellm={})
    assert "gradellm" not in answer
    assert all(len(choice["gradellm"]["attributions"]) == 3 for choice in answer["choices"])
    (answer,) = answers(url, prompt=PROMPT, max_tokens=3, gradellm={"citations": True, **own})
    assert "gradellm_citations" in answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_keeps_a_constraint(url: str, stream: bool) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    body = {"prompt": [PROMPT, "A number: "], "max_tokens": 40, "stream": stream}
    described = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {**schema, "additionalProperties": False}},
    }
    chunks = answers(url, **body, response_format=described)
    assert all(json.loads(text_of(chunks, index)).keys() == {"n"} for index in (0, 1))
    chunks = answers(url, **body, structured_outputs={"choice": ["yes", "no"]}, gradellm={})
    assert all(text_of(chunks, index) in ("yes", "no") for index in (0, 1))


def test_the_stop_text_is_told(url: str, server: RunningServer) -> None:
    text = undisturbed(server, max_new_tokens=8, attribution=None).text
    (answer,) = answers(url, prompt=PROMPT, max_tokens=8, stop=text[3:6])
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", text[3:6])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt[0]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1], [True]]}, "prompt[1]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [PROMPT, ""]}, "prompt[1]"),
        ({"prompt": "a" * 9000}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1], [1, 1 << 40]]}, "prompt[1][1]"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": PROMPT, "max_tokens": 0}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": -1}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 1 << 40}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 0, "echo": True, "gradellm": {}}, "max_tokens"),
        ({"prompt": PROMPT, "max_tokens": 0, "echo": True, "structured_outputs": {"regex": "a"}}, "max_tokens"),
        ({"prompt": PROMPT, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"prompt": PROMPT, "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        (
            {"prompt": PROMPT, "response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"prompt": PROMPT, "logprobs": 21}, "logprobs"),
        ({"prompt": PROMPT, "logprobs": -1}, "logprobs"),
        ({"prompt": PROMPT, "logprobs": True}, "logprobs"),
        ({"prompt": PROMPT, "suffix": "x"}, "suffix"),
        ({"prompt": PROMPT, "best_of": 2}, "best_of"),
        ({"prompt": PROMPT, "n": 1_000_000}, "n"),
        ({"prompt": PROMPT, "messages": []}, "messages"),
        ({"prompt": PROMPT, "temperature": -1}, "temperature"),
        ({"prompt": PROMPT, "gradellm": {"documents": []}}, "gradellm.documents"),
        ({"prompt": PROMPT, "gradellm": {"method": "nope"}}, "gradellm.method"),
        ({"prompt": PROMPT, "gradellm": {"segments": {"x": [0, 99]}}}, "gradellm.segments.x"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_cannot_be_are_refused_by_field(url: str, body: Any, param: str, stream: bool) -> None:
    status, _, said = post(f"{url}/v1/completions", {**body, "stream": stream})
    assert status == 400, said
    error = json.loads(said)["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert "prompt_ids" not in error["message"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    ("refused", "own"),
    [
        ("a" * 9000, {}),
        ([1, 1 << 20], {}),
        (PROMPT * 20, {"max_tokens": 200}),
        ("a", {"gradellm": {"segments": {"x": [0, 9]}}}),
        ("a" * 9000, {"max_tokens": 0, "echo": True}),
    ],
)
def test_all_prompts_are_checked_before_a_stream_begins(
    url: str, server: RunningServer, refused: Any, own: dict[str, Any], echo: bool
) -> None:
    is_text = isinstance(refused, str)
    prompts = [PROMPT if is_text else ids_of(server)] * 12
    body = {"max_tokens": 2, "echo": echo, **own, "n": 2, "stream": True}
    status, _, said = post(f"{url}/v1/completions", {**body, "prompt": [*prompts, refused, *prompts]})
    assert status == 400, said[:500]
    error = json.loads(said)["error"]
    assert "prompt[12]" in error["param"] or error["param"] in ("max_tokens", "gradellm.segments.x")
    chunks = answers(url, **body, prompt=prompts)
    assert {part["index"] for chunk in chunks for part in chunk["choices"]} == set(range(24))


def test_another_model_is_refused(url: str) -> None:
    assert post(f"{url}/v1/completions", {"model": "gpt-9", "prompt": "a"})[0] == 404
