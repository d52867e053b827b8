"""Calls over a real channel. Tests with the fixture `client` run with `Client` and with `AsyncClient`."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from gradellm import (
    CallCancelledError,
    Client,
    ClientClosedError,
    Event,
    GradellmError,
    InvalidRequestError,
    Retry,
    UnavailableError,
)
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer


def kinds(events: Any) -> list[str]:
    return [name for e in events for name in ("started", "token", "attribution", "finished") if getattr(e, name)]


STREAM = ["started", *["token", "attribution"] * 3, "finished"]


def test_generate_streams_one_kind_at_a_time(client: Any, fake: FakeServer) -> None:
    assert kinds(client.generate("Once upon a time", max_new_tokens=3, layers=2)) == STREAM
    (request,) = fake.requests
    assert request == pb.GenerateRequest(
        input=pb.Input(prompt="Once upon a time"),
        max_new_tokens=3,
        attribution=pb.AttributionOptions(layers=pb.Layers(last=2)),
    )


def test_explain_collects(client: Any) -> None:
    explanation = client.explain("Once upon a time")
    assert explanation.text == " there wasn't"
    assert explanation.scores[1] == (0.25, 0.25, 1.0, 0.25, 0.25)
    assert explanation.provenance.sampling.seed == 7
    assert explanation.provenance.attribution.layers == 2
    assert explanation.finished.reason == "max_new_tokens"


def test_attribute_explains_a_given_completion(client: Any, fake: FakeServer) -> None:
    assert kinds(client.attribute_events("Once", completion_ids=[50, 51])) == STREAM
    assert client.attribute("Once", completion=" there", method="saliency").text == " there wasn't"
    assert [type(request) for request in fake.requests] == [pb.AttributeRequest] * 2
    assert fake.requests[1].attribution.method == "saliency"  # type: ignore[attr-defined]


def test_tokenize(client: Any, fake: FakeServer) -> None:
    prompt = client.tokenize(messages=[("user", "Once")])
    assert prompt.prompt_text == "Once upon a time"
    assert [token.role for token in prompt.tokens] == ["template", *["user"] * 4]
    assert fake.requests == [pb.TokenizeRequest(input=pb.Input(messages=[pb.Message(role="user", content="Once")]))]


def test_server_info(client: Any) -> None:
    info = client.server_info(timeout=20)
    assert (info.model.name, info.model.has_chat_template, info.limits.max_prompt_tokens) == ("fake", True, 512)
    assert (info.methods[0].switches, info.versions) == (("layers",), {"torch": "2"})


def test_events_of_unknown_kind_are_passed_over(client: Any, fake: FakeServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(fake, "_stream", lambda *_: iter([pb.GenerateResponse()]))
    assert list(client.generate("Once")) == []


def test_prompt_progress_is_an_event(client: Any, fake: FakeServer, monkeypatch: Any) -> None:
    first, *rest = fake.parts
    reading = [pb.GenerateResponse(prompt_progress=pb.Progress(done=done)) for done in (0.25, 0.75)]
    carried: list[dict[str, Any]] = [{type(item).__name__.lower(): item} for item in (first, *rest)]
    responses = [pb.GenerateResponse(**item) for item in carried]
    monkeypatch.setattr(fake, "_stream", lambda *_: iter([responses[0], *reading, *responses[1:]]))
    received: list[Event] = []
    explanation = client.explain("Once", on_event=received.append)
    assert [event.prompt_progress.done for event in received if event.prompt_progress is not None] == [0.25, 0.75]
    assert explanation.text == " there wasn't"
    assert kinds(client.generate("Once")) == kinds(event for event in received if event.prompt_progress is None)
    heard: list[Event] = []
    assert set(kinds(client.generate("Once", on_event=heard.append))) <= {"started", "token", "attribution", "finished"}
    assert len(heard) == len(received)


def test_long_rows_arrive(client: Any, fake: FakeServer) -> None:
    fake.parts[2] = pb.Attribution(token_index=0, scores=[0.5] * (2 << 20))  # 8 MiB
    events = [event for event in client.generate("Once") if event.attribution]
    assert len(events[0].attribution.scores) == 2 << 20


def test_a_wrong_request_is_not_sent(client: Any, fake: FakeServer) -> None:
    with pytest.raises(InvalidRequestError, match="temperature"):
        client.generate("Once", temperature="hot")  # before the first event
    with pytest.raises(InvalidRequestError, match="timeout"):
        client.server_info(timeout=-1)
    with pytest.raises(TypeError, match="did you mean timeout"):
        client.server_info(timeuot=1)
    assert fake.requests == []


# --- leaving a stream -----------------------------------------------------------------------------------------------


def test_leaving_the_loop_cancels(client: Any, fake: FakeServer) -> None:
    fake.hold.set()
    for event in client.generate("Once"):
        if event.attribution:
            break
    assert fake.cancelled.wait(10)


def test_closing_the_iterator_cancels(client: Any, fake: FakeServer) -> None:
    fake.hold.set()
    events = client.generate("Once")
    next(events)
    events.close()
    assert fake.cancelled.wait(10)


def test_closing_the_client_fails_running_calls(fake: FakeServer) -> None:
    fake.hold.set()
    client = Client(fake.target, retry=None)
    events = client.generate("Once")
    next(events)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(CallCancelledError):
        list(events)
    assert fake.cancelled.wait(10)


def test_a_closed_client_raises(fake: FakeServer) -> None:
    client = Client(fake.target, retry=None)
    events = client.generate("Once")
    client.close()
    client.close()
    for use in (client.server_info, lambda: client.generate("Once"), lambda: next(events)):
        with pytest.raises(ClientClosedError, match="closed"):
            use()


def test_closing_the_client_ends_the_wait_before_a_retry(fake: FakeServer) -> None:
    fake.overload()
    began = 0.0

    def on_wait(error: GradellmError, seconds: float) -> None:
        nonlocal began
        began = time.monotonic()
        threading.Timer(0.1, client.close).start()

    client = Client(fake.target, retry=Retry(on_wait=on_wait))
    with pytest.raises(ClientClosedError):
        client.explain("Once")
    assert 0 < time.monotonic() - began < 1  # the server says 1.5 s


def test_another_caller_shares_the_connections(fake: FakeServer) -> None:
    with Client(fake.target, retry=None) as client:
        other = client.with_token("t")
        assert other.server_info() == client.server_info()
    with pytest.raises(ClientClosedError):
        other.server_info()


# --- servers that load ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["localhost", "unix"])
def silent(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[str]:
    """The target of a port that accepts connections and sends nothing, as a server does while it loads its model."""
    if request.param == "unix":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{tmp_path}/silent.sock")
            listening.listen()
            yield f"unix:{tmp_path}/silent.sock"
        return
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"localhost:{listening.getsockname()[1]}"


def test_a_loading_server_is_waited_for(silent: str) -> None:
    with Client(silent, retry=None) as client, pytest.raises(UnavailableError) as caught:
        client.server_info()
    assert caught.value.is_starting
    assert str(caught.value).startswith(f"the server at {silent} listens and does not answer yet: it is probably")
    assert "no gradellm server answers" not in str(caught.value)


def test_a_server_that_still_loads_is_waited_for(fake: FakeServer, tmp_path: Any) -> None:
    waits: list[tuple[GradellmError, float]] = []
    target = f"unix:{tmp_path}/late.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{tmp_path}/late.sock")
    listening.listen()

    def on_wait(error: GradellmError, seconds: float) -> None:
        waits.append((error, seconds))
        if len(waits) == 3:  # more than the attempts of any other failure
            os.unlink(f"{tmp_path}/late.sock")
            os.symlink(f"{tmp_path}/fake.sock", f"{tmp_path}/late.sock")

    retry = Retry(attempts=2, starting_seconds=30, max_seconds=0.1, on_wait=on_wait)
    with listening, Client(target, retry=retry) as client:
        assert client.server_info().model.name == "fake"
    assert all(isinstance(error, UnavailableError) for error, _ in waits)
