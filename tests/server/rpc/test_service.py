"""The service through a real channel: streams hold what the engine computes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradellm import Client, Event
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    AttributionSettings,
    GradEllm,
    Message,
    PromptInput,
    Resolution,
    Role,
    Sampling,
    Segment,
    Sources,
)
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS
from server.conftest import RunningServer

PROMPT = "Once upon a time"
CHAT = pb.Input(
    messages=[pb.Message(role="system", content="Be kind."), pb.Message(role="user", content=" Hello you ")]
)


def _place(token: pb.Token) -> tuple[int, int, str, int, int]:
    return token.index, token.id, token.text, token.start, token.end


def events(responses: object) -> list[pb.GenerateResponse]:
    return list(responses)  # type: ignore[call-overload, no-any-return]


def tokens(responses: list[Any]) -> list[pb.Token]:
    return [event.token for event in responses if event.HasField("token")]


def test_generate_streams_started_tokens_with_attributions_finished(server: RunningServer) -> None:
    request = pb.GenerateRequest(
        input=pb.Input(prompt=PROMPT), max_new_tokens=5, num_alternatives=2, attribution=pb.AttributionOptions()
    )
    received = events(server.stub.Generate(request))
    kinds = [event.WhichOneof("event") for event in received]
    assert kinds == ["started", *["token", "attribution"] * 5, "finished"]
    expected = server.engine.generate(
        PROMPT, Sampling(max_new_tokens=5, num_alternatives=2), AttributionSettings(GradEllm.preset("recommended"))
    )
    for step, token, row in zip(expected, received[1:-1:2], received[2:-1:2], strict=True):
        assert step.attribution is not None
        assert (token.token.index, token.token.id, token.token.text) == (step.index, step.id, step.text)
        assert token.token.logprob == step.logprob
        assert [a.id for a in token.token.alternatives] == [a.id for a in step.alternatives]
        assert list(row.attribution.scores) == step.attribution.scores.tolist()
        assert row.attribution.target_token_id == step.id
    started, finished = received[0].started, received[-1].finished
    assert started.prompt_text == PROMPT
    assert [token.id for token in started.prompt_tokens] == expected.started.prompt.ids
    assert finished.reason == pb.FINISH_REASON_MAX_NEW_TOKENS
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(PROMPT) + 1, 5)
    assert finished.usage.attributed_tokens == 5
    assert finished.timings.decode_seconds > 0
    assert finished.timings.attribution_seconds > 0


def test_a_long_prompt_reports_prefill_progress(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", 16)
    prompt = "".join(chr(65 + index % 26) for index in range(101))  # with <s>, 101 of 102 tokens are read before a step
    request_ = pb.GenerateRequest(input=pb.Input(prompt=prompt), max_new_tokens=2)
    kinds = [str(answer.WhichOneof("event")) for answer in server.stub.Generate(request_)]
    assert kinds == ["started", *["prompt_progress"] * 6, "token", "token", "finished"]
    progress: list[float] = []

    def hear(event: Event) -> None:
        progress.extend([] if event.prompt_progress is None else [event.prompt_progress.done])

    with Client(server.address) as client:
        completion = {"completion": "ab", "timeout": 60}
        client.attribute(prompt[::-1], on_event=hear, **completion)  # type: ignore[arg-type]
        assert progress == pytest.approx([16 * chunk / 101 for chunk in range(1, 7)])
        progress.clear()
        client.explain("short", max_new_tokens=1, on_event=hear)
        assert progress == []
        asked_once = client.generate(prompt[1:], max_new_tokens=1)
        assert all(event.prompt_progress is None for event in asked_once)


def test_without_attribution_options_there_are_tokens_alone(server: RunningServer) -> None:
    received = events(server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=PROMPT), max_new_tokens=3)))
    assert [event.WhichOneof("event") for event in received] == ["started", "token", "token", "token", "finished"]
    assert not received[0].started.provenance.HasField("attribution")
    assert received[-1].finished.timings.attribution_seconds == 0


def test_a_conversation_keeps_roles_segments_and_words(server: RunningServer) -> None:
    chat_input = pb.Input()
    chat_input.CopyFrom(CHAT)
    chat_input.segments.add(name="greeting", message=1, start=1, end=6)
    options = pb.AttributionOptions(resolution=pb.RESOLUTION_SEGMENT, sources=pb.SOURCES_PREFIX)
    received = events(server.stub.Generate(pb.GenerateRequest(input=chat_input, max_new_tokens=3, attribution=options)))
    started = received[0].started
    assert started.prompt_text == "<s><|system|>Be kind.</s><|user|>Hello you</s><|assistant|>"
    user = [token for token in started.prompt_tokens if token.role == pb.ROLE_USER]
    assert "".join(token.text for token in user) == "Hello you"
    assert {token.message for token in user} == {1}
    assert "".join(token.text for token in user if token.segment == "greeting") == "Hello"
    assert [source.label for source in started.sources] == ["template", "system", "greeting", "user"]
    rows = [event.attribution.scores for event in received if event.HasField("attribution")]
    assert [len(row) for row in rows] == [4, 5, 5]  # one more source for the generated tokens
    token = next(event.token for event in received if event.HasField("token"))
    assert token.source_index == 4
    assert [read_token.word for read_token in started.prompt_tokens] == sorted(
        read_token.word for read_token in started.prompt_tokens
    )
    words = {read_token.word: "" for read_token in started.prompt_tokens}
    for read_token in started.prompt_tokens:
        words[read_token.word] += read_token.text
    assert [*words.values()] == [
        "<s>", "<|system|>", "Be", " kind.", "</s>", "<|user|>", "Hello", " you", "</s>", "<|assistant|>"
    ]  # fmt: skip
    assert token.word == 0
    by_token = server.engine.generate(
        PromptInput(
            messages=(Message("system", "Be kind."), Message("user", " Hello you ")),
            segments=(Segment("greeting", 1, 6, message=1),),
        ),
        Sampling(max_new_tokens=1),
        AttributionSettings(GradEllm.preset("recommended"), resolution=Resolution.TOKEN, sources=Sources.PROMPT),
    )
    scores = next(iter(by_token)).attribution
    assert scores is not None
    greeting = sum(
        score
        for score, prompt_token in zip(scores.scores.tolist(), by_token.started.prompt.tokens, strict=True)
        if prompt_token.segment == "greeting"
    )
    assert rows[0][2] == pytest.approx(greeting, rel=1e-5)
    assert {t.role for t in by_token.started.prompt.tokens} == {Role.TEMPLATE, Role.SYSTEM, Role.USER}


def test_chunked_scores_lag_by_at_most_a_chunk(server: RunningServer) -> None:
    def received(**options: Any) -> list[pb.GenerateResponse]:
        request_ = pb.AttributionOptions(**options)
        return events(
            server.stub.Generate(
                pb.GenerateRequest(input=pb.Input(prompt=PROMPT), max_new_tokens=11, attribution=request_)
            )
        )

    expected = [event.attribution.scores for event in received() if event.HasField("attribution")]
    chunked = received(delivery=pb.DELIVERY_CHUNKED, chunk_size=4)
    assert chunked[0].started.provenance.attribution.delivery == pb.DELIVERY_CHUNKED
    assert [event.WhichOneof("event") for event in chunked[:6]] == ["started", *["token"] * 4, "attribution"]
    assert chunked[-1].HasField("finished")
    progress = explained = 0
    for event in chunked:
        progress += event.HasField("token")
        explained += event.HasField("attribution")
        assert 0 <= progress - explained <= 4
    rows = [event.attribution for event in chunked if event.HasField("attribution")]
    assert [row.token_index for row in rows] == list(range(11))
    for row, scores in zip(rows, expected, strict=True):
        assert row.scores == pytest.approx(scores, rel=1e-4, abs=1e-5)


def test_a_shared_prefix_is_reused(server: RunningServer) -> None:
    first = "The story of a fox and a bear that I tell. "
    request = pb.GenerateRequest(input=pb.Input(prompt=first), max_new_tokens=3)
    for _ in range(2):
        usage = events(server.stub.Generate(request))[-1].finished.usage
    assert usage.reused_prompt_tokens == usage.prompt_tokens - 1
    request.input.prompt += "Once there was"
    longer = events(server.stub.Generate(request))[-1].finished.usage
    assert longer.reused_prompt_tokens == usage.prompt_tokens


def test_attribute_scores_a_given_completion_like_generate(server: RunningServer) -> None:
    options = pb.AttributionOptions(top_k_sources=3)
    generated = events(
        server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=PROMPT), max_new_tokens=4, attribution=options))
    )
    ids = [event.token.id for event in generated if event.HasField("token")]
    attributed = list(
        server.stub.Attribute(
            pb.AttributeRequest(input=pb.Input(prompt=PROMPT), completion_ids=ids, attribution=options)
        )
    )
    assert attributed[-1].finished.reason == pb.FINISH_REASON_END_OF_COMPLETION
    for a, b in zip(tokens(attributed), tokens(generated), strict=True):
        assert math.isclose(a.logprob, b.logprob, abs_tol=1e-5)  # scored in one pass, and generated token by token
        a.logprob = b.logprob = 0
        assert a == b
    for actual, expected in zip(
        (e.attribution for e in generated if e.HasField("attribution")),
        (e.attribution for e in attributed if e.HasField("attribution")),
        strict=True,
    ):
        assert actual.source_indexes == expected.source_indexes
        assert actual.scores == pytest.approx(expected.scores, rel=1e-4)
        assert len(actual.scores) == len(actual.source_indexes) == 3
        assert [abs(score) for score in actual.scores] == sorted(map(abs, actual.scores), reverse=True)


def test_attribute_takes_a_completion_as_text(server: RunningServer) -> None:
    received = list(server.stub.Attribute(pb.AttributeRequest(input=pb.Input(prompt=PROMPT), completion=", there was")))
    assert "".join(event.token.text for event in received if event.HasField("token")) == ", there was"
    assert sum(event.HasField("attribution") for event in received) == len(", there was")


def test_a_stream_resumes_from_the_tokens_that_a_client_holds(server: RunningServer) -> None:
    request = pb.GenerateRequest(
        input=pb.Input(prompt=PROMPT), max_new_tokens=8, temperature=1.0, seed=5, attribution=pb.AttributionOptions()
    )
    expected = events(server.stub.Generate(request))
    tokens = [event.token for event in expected if event.HasField("token")]
    rows = [event.attribution for event in expected if event.HasField("attribution")]
    request.forced_ids.extend(token.id for token in tokens[:5])
    request.first_attribution = 3
    rest = events(server.stub.Generate(request))
    assert [_place(event.token) for event in rest if event.HasField("token")] == [_place(token) for token in tokens[5:]]
    resumed = [event.attribution for event in rest if event.HasField("attribution")]
    assert [row.token_index for row in resumed] == [3, 4, 5, 6, 7]
    for actual, expected_row in zip(resumed, rows[3:], strict=True):
        assert list(actual.scores) == pytest.approx(list(expected_row.scores), rel=1e-4, abs=1e-7)


def test_streams_run_concurrently(server: RunningServer) -> None:
    """A short request finishes while a long one runs."""
    with Client(server.address, retry=None) as client:
        long = client.generate(PROMPT, max_new_tokens=200)
        seen = [next(long) for _ in range(4)]
        assert client.explain(PROMPT, max_new_tokens=2).text
        rest = list(long)
        assert len(seen) + len(rest) > 100
