"""Sampling settings through the SDK: what provenance tells, and a stream that goes on at another server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from transformers import GenerationConfig

from gradellm import Client, InvalidRequestError
from gradellm.models import Event
from gradellm.transport import calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm_engine import Engine, GenerationConfigSource
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PROMPT = "Once upon a time"
STORED = {"do_sample": True, "temperature": 1.2, "top_k": 50, "repetition_penalty": 1.5, "max_new_tokens": 12}
SETTINGS: dict[str, Any] = {
    "min_p": 0.01,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.25,
    "logit_bias": {70: 2.0, 71: -3.0},
    "min_new_tokens": 4,
    "ignore_eos": True,
    "stop_token_ids": (255,),
    "skip_special_tokens": False,
    "temperature": 0.9,
    "stop": ("qq",),
}


@pytest.fixture(scope="module")
def sampling_server(engine: Engine) -> Iterator[RunningServer]:
    """A server whose model has sampling defaults."""
    model = replace(engine.model, generation_config=GenerationConfig(**STORED))
    running = RunningServer(Engine(model), ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def plain_server(engine: Engine) -> Iterator[RunningServer]:
    """A server of the same model without its defaults."""
    model = replace(engine.model, generation_config=GenerationConfig(**STORED))
    plain = Engine(model, generation_config=GenerationConfigSource.NONE)
    running = RunningServer(plain, ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


def test_started_tells_every_setting(server: RunningServer) -> None:
    with Client(server.address) as client:
        sampling = client.explain(PROMPT, attribution=None, max_new_tokens=5, seed=3, **SETTINGS).provenance.sampling
        assert sampling is not None
        assert {name: getattr(sampling, name) for name in SETTINGS} == SETTINGS
        plain = client.explain(PROMPT, attribution=None, max_new_tokens=1).provenance.sampling
        assert plain is not None
        assert (plain.temperature, plain.min_p, plain.repetition_penalty, plain.skip_special_tokens) == (0, 0, 1, True)


def test_defaults_of_the_model_are_used_where_the_request_says_nothing(
    sampling_server: RunningServer, plain_server: RunningServer
) -> None:
    with Client(sampling_server.address) as client:
        used = client.explain(PROMPT, attribution=None).provenance.sampling
        assert used is not None
        names = ("temperature", "top_k", "repetition_penalty", "max_new_tokens")
        assert [getattr(used, name) for name in names] == [1.2, 50, 1.5, 12]
        greedy = client.explain(PROMPT, attribution=None, temperature=0, repetition_penalty=1, max_new_tokens=6)
        evaluated = list(client.evaluate_events(PROMPT, methods=["random"], max_new_tokens=1, samples=1, pis=[0.5]))
    with Client(plain_server.address) as client:
        plain = client.explain(PROMPT, attribution=None, max_new_tokens=6)
    assert [token.id for token in plain.tokens] == [token.id for token in greedy.tokens]
    assert evaluated[0].started is not None
    assert evaluated[0].started.provenance.sampling is not None
    assert evaluated[0].started.provenance.sampling.temperature == 0


@pytest.mark.parametrize("settings", [{}, {**SETTINGS, "ignore_eos": False}], ids=["defaults", "settings"])
def test_a_stream_goes_on_at_a_server_with_other_defaults(
    sampling_server: RunningServer, plain_server: RunningServer, settings: dict[str, Any]
) -> None:
    def tokens(cut: int | None) -> list[int]:
        stream = ResumableStream(calls.generate(PROMPT, {"attribution": None, "seed": 9, **settings}))  # type: ignore[typeddict-item]
        events: list[Event | None] = []
        for server, responses in ((sampling_server, cut), (plain_server, None)):
            request: Any = stream.request
            events += [stream.take(each, "a") for each in itertools.islice(server.stub.Generate(request), responses)]
            if stream.is_over:
                break
        return [event.token.id for event in events if event is not None and event.token is not None]

    whole = tokens(None)
    assert len(whole) == 12
    for cut in (1, 2, 5, 10):
        assert tokens(cut) == whole


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("min_p", {"min_p": 2}),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(100_000), 1.0)}),
        ("logit_bias[5]", {"logit_bias": {5: float("nan")}}),
        ("stop_token_ids", {"stop_token_ids": range(200)}),
        ("input.chat_template_kwargs.messages", {"chat_template_kwargs": {"messages": []}}),
        ("input.chat_template_kwargs.tools", {"chat_template_kwargs": {"tools": []}}),
        ("input.chat_template_kwargs", {"chat_template_kwargs": {"a": "x" * 1_000_000}}),
    ],
)
def test_what_is_too_large_or_no_number_is_refused_by_name(
    server: RunningServer, field: str, keywords: dict[str, Any]
) -> None:
    prompt: dict[str, Any] = {"messages": [("user", "a")]} if "chat" in field else {"prompt": "a"}
    with Client(server.address) as client, pytest.raises(InvalidRequestError) as caught:
        client.explain(**prompt, timeout=2, **keywords)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_every_call_reads_options_of_the_template(demo: RunningServer) -> None:
    messages = [("user", "Who?"), ("assistant", "It is")]
    options: Any = {"messages": messages, "continue_final_message": True}
    with Client(demo.address) as client:
        text = client.tokenize(**options).prompt_text
        assert text.endswith("It is")
        assert client.explain(**options, max_new_tokens=1).prompt_text == text
        assert client.attribute(**options, completion=" so").prompt_text == text
        closed = client.tokenize(messages=messages, add_generation_prompt=False).prompt_text
        whole = client.tokenize(messages=messages).prompt_text
    assert closed.startswith(text)
    assert whole.startswith(closed)
    assert len(text) < len(closed) < len(whole)
