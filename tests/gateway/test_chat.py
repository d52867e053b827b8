"""Chat completions, called by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from gradellm import Client, Event, Explanation
from gradellm.models import Alternative, Token
from gradellm.pictures.chips import canvas
from gradellm.pictures.document import canvas_document, picture_document
from gradellm_gateway.chat import ChatRequest, Completion
from gradellm_gateway.documents import CitedDocuments
from gradellm_gateway.event_objects import citation_objects
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post


def undisturbed(server: RunningServer, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(messages=MESSAGES, **keywords)


def test_names_of_speakers_reach_the_chat_template(
    url: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
    monkeypatch.setattr(server.engine.model.tokenizer, "chat_template", template)
    body = {"messages": [{"role": "user", "content": "a fox", "name": "bob"}], "max_tokens": 1, "gradellm": {}}
    answer = json.loads(post(f"{url}/v1/chat/completions", body)[2])
    assert "bob: a fox" in answer["gradellm"]["started"]["prompt_text"]


def test_a_chat_is_streamed_a_token_a_chunk_with_its_attribution(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=12, sources="prefix")
    stream = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"gradellm": {"sources": "prefix"}},
    )
    started: Any = None
    texts, rows, reason, usage = [], {}, None, None
    for chunk in stream:
        own: Any = (chunk.model_extra or {}).get("gradellm") or {}
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
        if "started" in own:
            started = own["started"]
        if "attribution" in own:
            rows[own["attribution"]["token_index"]] = own["attribution"]["scores"]
        if chunk.choices and chunk.choices[0].finish_reason:
            reason = chunk.choices[0].finish_reason
        usage = chunk.usage or usage
    assert "".join(texts) == expected.text
    assert texts == [token.text for token in expected.tokens if token.text]
    assert [token["id"] for token in started["prompt_tokens"]] == [token.id for token in expected.prompt_tokens]
    assert len(rows) == 12
    for row in expected.attributions:
        assert rows[row.token_index] == pytest.approx(row.scores, abs=1e-6)
    assert reason == "length"
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens == len(expected.prompt_tokens)


def test_attribution_is_off_by_default(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="gradellm", messages=MESSAGES, max_tokens=4, stream=True)
    assert all("gradellm" not in (chunk.model_extra or {}) for chunk in stream)


def test_an_answer_that_is_not_streamed(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=6, num_alternatives=2)
    answer: Any = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=2,
        extra_body={"gradellm": {}},
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].logprobs.content[0].logprob == pytest.approx(expected.tokens[0].logprob, abs=1e-5)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    explanation = Explanation.from_json(json.dumps(answer.gradellm))
    assert explanation.text == expected.text
    assert explanation.scores[0] == pytest.approx(expected.scores[0], abs=1e-6)


def test_sampling_and_parts_of_messages(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3, attribution=None)
    answer = client.chat.completions.create(
        model="gradellm",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]}
        ],
        max_tokens=8,
        temperature=1.0,
        top_p=0.9,
        seed=3,
        presence_penalty=0,
        user="me",
    )
    assert answer.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"n": 10**6}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 5, "gradellm": {"top_k": 5}}, "gradellm.top_k"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"logit_bias": {"99999": 1}}, "logit_bias[99999]"),
        ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": [99999]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(200))}, "stop_token_ids"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"chat_template_kwargs": {"a": "x" * 10_001}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"gradellm": {"colour": "red"}}, "gradellm.colour"),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, "messages"),
        ({"messages": [*MESSAGES, {"role": "user", "content": "\ud800"}]}, "messages[1].content"),
        ({"gradellm": {"layers": "none"}}, "gradellm.layers"),
        ({"gradellm": {"layers": [99]}}, "gradellm.layers"),
        ({"gradellm": {"method": "saliency"}}, "gradellm.method"),
        ({"gradellm": {"method": "random", "layer": 1}}, "gradellm.layer"),
        ({"gradellm": {"target": -1}}, "gradellm.target"),
        ({"gradellm": {"contrast": ""}}, "gradellm.contrast"),
        ({"gradellm": {"top_k": -1}}, "gradellm.top_k"),
        ({"gradellm": {"forced_ids": [-1]}}, "gradellm.forced_ids[0]"),
        ({"gradellm": {"first_attribution": 5}}, "gradellm.first_attribution"),
        ({"gradellm": {"chunk_size": 0}}, "gradellm.chunk_size"),
        ({"gradellm": {"tokens": []}}, "gradellm.tokens"),
        ({"gradellm": {"tokens": "no text yet"}}, "gradellm.tokens"),
        ({"max_tokens": 3, "gradellm": {"tokens": [3]}}, "gradellm.tokens"),
        ({"gradellm": {"timeout": True}}, "gradellm.timeout"),
        ({"gradellm": {"attribution": "pepper"}}, "gradellm.attribution"),
        ({"gradellm": {"method": "random", "attribution_seed": -1}}, "gradellm.attribution_seed"),
        ({"gradellm": {"segments": {"kite": [0, 0, 1], "card": [0, 5, 99]}}}, "gradellm.segments.card"),
        ({"gradellm": {"segments": {"kite": [7, 0, 1]}}}, "gradellm.segments.kite"),
        ({"gradellm": {"segments": {"kite": 3}}}, "gradellm.segments.kite"),
        ({"gradellm": {"citations": True}}, "gradellm.citations"),
        ({"gradellm": {"citations": 1}}, "gradellm.citations"),
        ({"gradellm": {"pictures": "yes"}}, "gradellm.pictures"),
        ({"gradellm": {"pictures": True, "attribution": None}}, "gradellm.pictures"),
        ({"gradellm": 3}, "gradellm"),
    ],
)
def test_unsupported_fields_are_named(url: str, body: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        status, _, answer = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "stream": stream, **body})
        assert status == 400
        error = json.loads(answer)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: ")
        assert not re.search("max_new_tokens|num_alternatives|attribution\\.|input", error["message"])


@pytest.mark.parametrize("stream", [False, True])
def test_ids_of_prompt_and_completion_are_returned_if_asked_for(url: str, server: RunningServer, stream: bool) -> None:
    expected = undisturbed(server, max_new_tokens=5)
    body = {"messages": MESSAGES, "max_tokens": 5, "stream": stream, "return_token_ids": True}
    status, _, said = post(f"{url}/v1/chat/completions", body)
    assert status == 200
    lines = [line.removeprefix("data: ") for line in said.split("\n") if "{" in line]
    parts = [json.loads(line) for line in (lines if stream else [said])]
    assert [part["prompt_token_ids"] for part in parts if "prompt_token_ids" in part] == [
        [token.id for token in expected.prompt_tokens]
    ]
    assert "prompt_token_ids" in parts[0]
    ids = [number for part in parts for number in part["choices"][0].get("token_ids", ())]
    assert ids == [token.id for token in expected.tokens]
    assert "token_ids" not in post(f"{url}/v1/chat/completions", {**body, "return_token_ids": None})[2]


DOCUMENTS: Any = [{"role": "user", "content": "Tim had a red ball.\n\nWho had it?"}]
SEGMENTS = {"ball": [0, 0, 19]}


def collected(objects: list[dict[str, Any]]) -> Explanation:
    """The explanation of a stream's events."""
    parts: dict[str, Any] = {"format": "gradellm.explanation", "version": 1, "tokens": [], "attributions": []}
    for each in objects:
        parts |= {name: each[name] for name in ("started", "finished") if name in each}
        parts["tokens"] += [each["token"]] if "token" in each else []
        parts["attributions"] += [each["attribution"]] if "attribution" in each else []
    return Explanation.from_json(json.dumps(parts))


def test_pictures_and_citations_are_streamed_if_asked_for(client: openai.OpenAI) -> None:
    extra = {"gradellm": {"segments": SEGMENTS, "pictures": True, "citations": True}}
    stream = client.chat.completions.create(
        model="gradellm", messages=DOCUMENTS, max_tokens=12, stream=True, extra_body=extra
    )
    objects: list[Any] = []
    annotated: list[Any] = []
    for chunk in stream:
        objects.append((chunk.model_extra or {})["gradellm"])
        annotated += [(choice.delta.model_extra or {}) for choice in chunk.choices if choice.finish_reason]
    expected = collected(objects)
    assert objects[0]["canvas"] == canvas_document(expected.started, canvas(expected.started))
    words = [word for each in objects for word in each.get("words", ())]
    assert [word["text"] for word in words] == [word.text for word in expected.words]
    assert [word["picture"] for word in words] == [picture_document(expected.picture(word)) for word in expected.words]
    assert objects[-1]["answer"] == picture_document(expected.picture())
    assert objects[-1]["citations"] == citation_objects(expected)
    assert annotated == [{"annotations": CitedDocuments({}).annotations(citation_objects(expected), 0)}]


def test_a_cited_document_is_an_annotation_of_the_message(url: str) -> None:
    cites = {"segments": SEGMENTS, "citations": True, "attribution": "paper"}  # as this small model cites it
    body = {"messages": DOCUMENTS, "max_tokens": 12, "gradellm": cites}
    status, _, said = post(f"{url}/v1/chat/completions", body)
    assert status == 200
    answer = json.loads(said)
    citations = citation_objects(Explanation.from_json(json.dumps(answer["gradellm"])))
    assert [document["name"] for each in citations for document in each["documents"]] == ["ball"]
    assert answer["gradellm_citations"] == citations
    (annotation,) = answer["choices"][0]["message"]["annotations"]
    assert annotation["type"] == "url_citation"
    assert annotation["url_citation"]["url"] == "gradellm:document/ball"
    start, end = (annotation["url_citation"][name] for name in ("start_index", "end_index"))
    assert answer["choices"][0]["message"]["content"][start:end] == citations[0]["text"]


@pytest.mark.parametrize("stream", [True, False])
def test_documents_are_found_in_the_messages_and_cited(url: str, stream: bool) -> None:
    documents = [{"name": "ball", "text": "Tim had a red ball.", "url": "https://balls.example.org"}]
    own = {"documents": documents, "attribution": "paper"}
    _, _, said = post(
        f"{url}/v1/chat/completions", {"messages": DOCUMENTS, "max_tokens": 12, "stream": stream, "gradellm": own}
    )
    if stream:
        chunks = [json.loads(line.removeprefix("data: ")) for line in said.split("\n") if line.startswith("data: {")]
        (annotation,) = chunks[-1]["choices"][0]["delta"]["annotations"]
        (source,) = [chunk["event"]["data"] for chunk in chunks if "event" in chunk]
        started = chunks[0]["gradellm"]["started"]
    else:
        answer = json.loads(said)
        (annotation,) = answer["choices"][0]["message"]["annotations"]
        (source,) = answer["sources"]
        started = answer["gradellm"]["started"]
    assert {token["segment"] for token in started["prompt_tokens"]} == {"", "ball"}
    assert annotation["url_citation"]["url"] == "https://balls.example.org"
    assert annotation["url_citation"]["title"] == "ball"
    assert source["source"] == {"name": "ball", "url": "https://balls.example.org"}
    assert source["document"] == ["Tim had a red ball."]


def test_a_document_that_is_not_in_the_messages_is_refused(url: str) -> None:
    own = {"documents": [{"name": "ball", "text": "Tim had a blue ball."}]}
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": DOCUMENTS, "gradellm": own})
    assert (status, json.loads(said)["error"]["param"]) == (400, "gradellm.documents[0].text")


def test_pictures_of_an_answer_that_is_not_streamed_are_refused(url: str) -> None:
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "gradellm": {"pictures": True}})
    assert status == 400
    assert json.loads(said)["error"]["param"] == "gradellm.pictures"
    assert "/v1/gradellm/pictures" in json.loads(said)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_whose_text_tells_no_bytes_have_none(stream: bool) -> None:
    def token(text: str, *alternative_texts: str, special: bool = False) -> Token:
        alternatives = tuple(Alternative(1, other, -1.0) for other in alternative_texts)
        return Token(0, 1, text, 0, 0, -1.0, alternatives, special, None)

    tokens = [token("a", "a", "\ufffd"), token(""), token("é"), token(" b"), token("", special=True), token("\ufffd")]
    completion = Completion(ChatRequest.from_json({"messages": MESSAGES, "logprobs": True}), "m")
    if stream:
        chunks = [chunk for item in tokens for chunk in completion.chunks(Event(token=item))]
        content = [chunk["choices"][0]["logprobs"]["content"][0] for chunk in chunks]
    else:
        content = (completion._logprobs(tokens) or {})["content"]
    assert [item["bytes"] for item in content] == [[97], None, None, [32, 98], None, None]
    assert [item["bytes"] for item in content[0]["top_logprobs"]] == [[97], None]
