"""Both clients over a real channel, by the same tests: `Client`, and `AsyncClient` through a thin bridge."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from gradellm import (
    AsyncClient,
    CallCancelledError,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    Event,
    GradellmError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    Retry,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer


class Bridge:
    """AsyncClient called from ordinary code: every call runs to its end on a new event loop."""

    def __init__(self, target: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(target, retry=None)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            result = getattr(self._client, name)(*args, **keywords)
            return self._run(result) if isinstance(result, Coroutine) else self._iterate(result)

        return call

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    def _iterate(self, events: Any) -> Iterator[Event]:
        try:
            while True:
                try:
                    event = self._run(anext(events))
                except StopAsyncIteration:
                    return
                yield event
        finally:
            self._run(events.aclose())

    def end(self) -> None:
        self._run(self._client.close())
        self._loop.close()


@pytest.fixture(params=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    clients: list[Any] = []

    def make(target: str) -> Any:
        clients.append(Client(target, retry=None) if request.param == "sync" else Bridge(target))
        return clients[-1]

    yield make
    for client in clients:
        client.close() if isinstance(client, Client) else client.end()


@pytest.fixture
def client(connect: Callable[[str], Any], fake: FakeServer) -> Any:
    return connect(fake.target)


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


def test_async_break_cancels(fake: FakeServer) -> None:
    async def leave() -> bool:
        async with AsyncClient(fake.target, retry=None) as client:
            async for _ in client.generate("Once"):
                break
            return await asyncio.to_thread(fake.cancelled.wait, 10)  # while the client is open still

    fake.hold.set()
    assert asyncio.run(leave())


def test_async_task_cancelling_cancels(fake: FakeServer) -> None:
    async def leave() -> None:
        async with AsyncClient(fake.target, retry=None) as client:
            task = asyncio.create_task(client.explain("Once"))
            await asyncio.to_thread(fake.received.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.cancelled.wait, 10)

    fake.hold.set()
    asyncio.run(leave())


def test_closing_the_client_fails_running_calls(fake: FakeServer) -> None:
    fake.hold.set()
    client = Client(fake.target, retry=None)
    events = client.generate("Once")
    next(events)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(CallCancelledError):
        list(events)
    assert fake.cancelled.wait(10)


def test_closing_the_async_client_fails_running_calls(fake: FakeServer) -> None:
    async def close_meanwhile() -> None:
        client = AsyncClient(fake.target, retry=None)
        task = asyncio.create_task(client.explain("Once"))
        await asyncio.to_thread(fake.received.wait, 10)
        await client.close()
        with pytest.raises(CallCancelledError, match="closed"):
            await task

    fake.hold.set()
    asyncio.run(close_meanwhile())


def test_a_closed_client_raises(fake: FakeServer) -> None:
    client = Client(fake.target, retry=None)
    events = client.generate("Once")
    client.close()
    client.close()
    for use in (client.server_info, lambda: client.generate("Once"), lambda: next(events)):
        with pytest.raises(ClientClosedError, match="closed"):
            use()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, InvalidRequestError),
        (code_pb2.OUT_OF_RANGE, InvalidRequestError),
        (code_pb2.FAILED_PRECONDITION, InvalidRequestError),
        (code_pb2.RESOURCE_EXHAUSTED, OverloadedError),
        (code_pb2.UNAVAILABLE, UnavailableError),
        (code_pb2.DEADLINE_EXCEEDED, DeadlineExceededError),
        (code_pb2.CANCELLED, CallCancelledError),
        (code_pb2.UNIMPLEMENTED, UnimplementedError),
        (code_pb2.INTERNAL, ServerError),
        (code_pb2.UNKNOWN, ServerError),
        (code_pb2.DATA_LOSS, ServerError),
        (code_pb2.UNAUTHENTICATED, UnauthenticatedError),
        (code_pb2.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_every_status_has_its_exception(client: Any, fake: FakeServer, code: int, kind: type[GradellmError]) -> None:
    info = error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="gradellm")
    fake.fail(code, "the words of the server", info)
    for call in (
        lambda: list(client.generate("Once")),
        lambda: client.tokenize("Once"),
        lambda: client.explain("Once"),
    ):
        with pytest.raises(kind, match="the words of the server") as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.reason == "SOME_REASON"
        assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_violations_name_their_fields(client: Any, fake: FakeServer) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="max_new_tokens", description="is 9, at most 8 fit")
    bad.field_violations.add(field="top_p", description="must be in (0, 1]")
    fake.fail(code_pb2.INVALID_ARGUMENT, "2 fields are wrong", bad)
    with pytest.raises(InvalidRequestError) as caught:
        client.explain("Once")
    assert str(caught.value) == "max_new_tokens: is 9, at most 8 fit; top_p: must be in (0, 1]"
    assert caught.value.violations == (
        Violation("max_new_tokens", "is 9, at most 8 fit"),
        Violation("top_p", "must be in (0, 1]"),
    )
    assert isinstance(caught.value, ValueError)


def test_overload_carries_the_retry_delay(client: Any, fake: FakeServer) -> None:
    fake.overload()
    with pytest.raises(OverloadedError, match=r"8 requests wait .*try again in 1.5 s") as caught:
        client.explain("Once")
    assert (caught.value.retry_after_seconds, caught.value.reason) == (1.5, "QUEUE_FULL")


def test_a_deadline_that_is_over(client: Any, fake: FakeServer) -> None:
    fake.hold.set()
    with pytest.raises(DeadlineExceededError, match=r"timeout=0\.3") as caught:
        client.explain("Once", timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert fake.cancelled.wait(10)


def test_no_server_answers(connect: Callable[[str], Any], tmp_path: Any) -> None:
    target = f"unix:{tmp_path}/nobody.sock"
    with pytest.raises(UnavailableError, match="gradellm serve") as caught:
        connect(target).server_info()
    assert str(caught.value).startswith(f"no gradellm server answers at {target} (")


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


def test_a_message_too_large_is_no_overload(client: Any) -> None:
    with pytest.raises(InvalidRequestError, match="larger than max"):
        client.tokenize("x" * (5 << 20))  # the fake server has gRPC's own limit of 4 MiB


def test_long_rows_arrive(client: Any, fake: FakeServer) -> None:
    fake.parts[2] = pb.Attribution(token_index=0, scores=[0.5] * (2 << 20))  # 8 MiB
    events = [event for event in client.generate("Once") if event.attribution]
    assert len(events[0].attribution.scores) == 2 << 20


def test_garbled_details_do_not_hide_the_error(client: Any, fake: FakeServer) -> None:
    fake.fail(code_pb2.INTERNAL, "broken")
    assert fake.failure is not None
    key = fake.failure.trailing_metadata[0][0]
    fake.failure = fake.failure._replace(trailing_metadata=((key, b"\xff\xff"),))  # type: ignore[attr-defined]
    with pytest.raises(ServerError, match="broken"):
        client.tokenize("Once")
