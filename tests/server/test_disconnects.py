"""A client that leaves (cancel, deadline, disconnect) frees its slot within one step, queued or running."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from gradellm_engine.core.request import RequestPhase
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_server import fault_injection
from gradellm_server.rpc import events_to_wire
from server.conftest import RunningServer, Serving
from support.flaky_proxy import cutting

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


class Steps:
    """Counts a runner's attributed steps, and delays each."""

    def __init__(self) -> None:
        self.count = 0

    def slow(self, runner: ModelRunner) -> Callable[..., ExplainedPass]:
        original = runner.explained_pass

        def step(*arguments: Any) -> ExplainedPass:
            self.count += 1
            time.sleep(0.02)
            return original(*arguments)

        return step


@pytest.fixture
def steps(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    counter = Steps()
    runner = server.engine.model.runner
    monkeypatch.setattr(runner, "explained_pass", counter.slow(runner))
    return counter  # type: ignore[return-value]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.001)


def steps_after_leaving(server: RunningServer, steps: Steps, leave: Callable[[], object]) -> int:
    """The number of steps that start after the server has noticed that a client left."""
    thread = server.server.engine_thread
    noticed: list[int] = []
    original = thread.cancel

    def cancel(job: object) -> None:
        noticed.append(steps.count)
        original(job)  # type: ignore[arg-type]

    thread.cancel = cancel  # type: ignore[method-assign]
    try:
        leave()
        until(lambda: bool(noticed) and thread.num_running == 0)
        time.sleep(0.1)
    finally:
        thread.cancel = original  # type: ignore[method-assign]
    return steps.count - noticed[0]


def test_cancel_ends_a_running_stream_within_one_step(server: RunningServer, steps: Steps) -> None:
    call = server.stub.Generate(LONG)
    for _ in range(5):
        next(call)
    assert steps_after_leaving(server, steps, call.cancel) <= 1
    assert steps.count < 200


def test_a_deadline_ends_a_running_stream_within_one_step(server: RunningServer, steps: Steps) -> None:
    def expire() -> None:
        with pytest.raises(grpc.RpcError) as raised:
            list(server.stub.Generate(LONG, timeout=1.0))
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    assert steps_after_leaving(server, steps, expire) <= 1
    assert 1 <= steps.count <= 60


def test_a_connection_that_breaks_ends_its_streams(server: RunningServer, steps: Steps) -> None:
    channel: Any = grpc.insecure_channel(server.address)
    call = channel.unary_stream(
        "/gradellm.v1.ExplainerService/Generate", request_serializer=pb.GenerateRequest.SerializeToString
    )(LONG)
    next(call)
    assert steps_after_leaving(server, steps, channel.close) <= 1


def test_cancel_takes_effect_between_chunks_of_a_long_prompt(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.engine.model.runner
    original, lengths, started = runner.prefill, [], threading.Event()

    def slow_prefill(chunks: Sequence[SequenceChunk]) -> None:
        lengths.append(len(chunks[0].ids))
        started.set()
        time.sleep(0.1)
        original(chunks)

    monkeypatch.setattr(runner, "prefill", slow_prefill)
    monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", 20)
    call = server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt="a" * 200), max_new_tokens=2))
    started.wait(10)
    call.cancel()
    until(lambda: server.server.engine_thread.num_running == 0)
    assert len(lengths) <= 3


def test_a_cancelled_queued_request_frees_its_queue_slot(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(max_running=1, max_queued=1) as small:
        runner = small.engine.model.runner
        monkeypatch.setattr(runner, "explained_pass", Steps().slow(runner))
        thread = small.server.engine_thread
        running = small.stub.Generate(LONG)
        next(running)
        queued = small.stub.Generate(LONG)
        until(lambda: thread.num_waiting == 1)
        with pytest.raises(grpc.RpcError) as raised:
            list(small.stub.Generate(LONG))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        queued.cancel()
        until(lambda: thread.num_waiting == 0)
        waiting = small.stub.Generate(LONG)
        until(lambda: thread.num_waiting == 1)
        running.cancel()
        assert next(waiting).HasField("started")
        waiting.cancel()
        until(lambda: thread.num_running == 0)


def test_a_slow_consumer_does_not_delay_other_streams(server: RunningServer) -> None:
    unread = server.stub.Generate(LONG)
    next(unread)
    assert len(list(server.stub.Generate(LONG))) == 402
    unread.cancel()


PROMPT = pb.Input(prompt="a" * 100)
CHUNKED = pb.AttributionOptions(delivery=pb.DELIVERY_CHUNKED, chunk_size=2)
# Where a request is when its client leaves: the RPC, the request and its phase.
BUSY: dict[str, tuple[str, Any, RequestPhase]] = {
    "prefill": (
        "Generate",
        pb.GenerateRequest(input=pb.Input(prompt="b" * 230), max_new_tokens=2),
        RequestPhase.PREFILL,
    ),
    "decode": ("Generate", pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200), RequestPhase.DECODE),
    "chunks": (
        "Generate",
        pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=CHUNKED),
        RequestPhase.EXPLAIN,
    ),
    "given completion": (
        "Attribute",
        pb.AttributeRequest(input=PROMPT, completion="c" * 100, attribution=pb.AttributionOptions(chunk_size=1)),
        RequestPhase.EXPLAIN,
    ),
    "after the fact": (
        "Attribute",
        pb.AttributeRequest(
            input=PROMPT, completion="c" * 50, attribution=pb.AttributionOptions(method="lime", samples=10000)
        ),
        RequestPhase.POST_HOC,
    ),
    "evaluation": (
        "Evaluate",
        pb.EvaluateRequest(
            input=PROMPT,
            completion="c" * 50,
            evaluation=pb.EvaluationOptions(
                methods=[pb.EvaluatedMethod(attribution=pb.AttributionOptions(method="random"))], samples=100, stride=1
            ),
        ),
        RequestPhase.POST_HOC,
    ),
}


@pytest.mark.parametrize("how", ["deadline", "disconnect"])
@pytest.mark.parametrize("busy", BUSY)
def test_a_disconnect_takes_effect_within_one_step_in_every_phase(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, busy: str, how: str
) -> None:
    thread, scheduler = server.server.engine_thread, server.engine.scheduler
    name, request, phase = BUSY[busy]
    seen: list[RequestPhase] = []  # of the request, before each of its passes

    def note(streams: object) -> None:
        seen.append(streams[0].phase)  # type: ignore[index]
        time.sleep(0.05)

    noticed: list[int] = []
    original = thread.cancel

    def cancel(job: object) -> None:
        noticed.append(len(seen))
        original(job)  # type: ignore[arg-type]

    channel: Any = grpc.insecure_channel(server.address)
    monkeypatch.setattr(thread, "cancel", cancel)
    deadline = 4.0
    if busy == "prefill":
        deadline = 1.0
        monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", 8)
        # Another prompt each time, since the prefix cache would skip the prefill.
        request = pb.GenerateRequest(input=pb.Input(prompt=how[0] * 230), max_new_tokens=2)
    with fault_injection.armed("pass", note):
        call = channel.unary_stream(
            f"/gradellm.v1.ExplainerService/{name}", request_serializer=type(request).SerializeToString
        )(request, timeout=deadline if how == "deadline" else 30)
        until(lambda: seen.count(phase) >= 3)
        if how == "disconnect":
            channel.close()
        else:
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: bool(noticed) and not scheduler.running)
        time.sleep(0.1)
        assert len(seen) - noticed[0] <= 1
        assert seen[-1] in (phase, RequestPhase.DECODE)
    channel.close()
    assert thread.num_unfinished == 0
    assert server.engine.model.runner.pool.num_free_tokens == server.engine.kv_tokens


@pytest.mark.parametrize("how", ["deadline", "disconnect"])
def test_a_queued_request_whose_client_left_never_starts(serving: Serving, how: str) -> None:
    with serving(max_running=1, max_queued=1) as small, fault_injection.armed("pass", fault_injection.stalling(0.02)):
        thread = small.server.engine_thread
        running = small.stub.Generate(LONG)
        next(running)
        channel: Any = grpc.insecure_channel(small.address)
        queued = channel.unary_stream(
            "/gradellm.v1.ExplainerService/Generate", request_serializer=pb.GenerateRequest.SerializeToString
        )(LONG, timeout=0.5 if how == "deadline" else 30)
        until(lambda: thread.num_waiting == 1)
        if how == "disconnect":
            channel.close()
        until(lambda: thread.num_unfinished == 1)
        assert small.engine.scheduler.running
        running.cancel()
        until(lambda: thread.num_unfinished == 0)
        until(lambda: not small.engine.scheduler.running and not small.engine.scheduler.waiting)
        del queued
        channel.close()


@pytest.fixture
def large_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes messages so large that gRPC's flow-control window is soon full."""
    original = events_to_wire.responses

    def large(*arguments: Any) -> Any:
        answers = original(*arguments)
        for answer in answers:
            if answer.HasField("token"):
                answer.token.text = "x" * 200_000
        return answers

    monkeypatch.setattr(events_to_wire, "responses", large)


@pytest.mark.usefixtures("large_answers")
def test_an_unread_stream_is_aborted_and_its_slot_freed(serving: Serving) -> None:
    with serving(reader_timeout_seconds=1.0) as running:
        call = running.stub.Generate(LONG)
        thread = running.server.engine_thread
        until(lambda: thread.num_unfinished == 1)
        until(lambda: thread.num_unfinished == 0)
        # The slot is free at once, the memory as soon as the thread is between two passes.
        until(lambda: running.engine.model.runner.pool.num_free_tokens == running.engine.kv_tokens)
        time.sleep(0.5)
        got: list[Any] = []
        with pytest.raises(grpc.RpcError) as raised:  # a client that reads after all gets the status
            got.extend(call)
        assert len(got) < 402
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.ABORTED
        assert "1 s" in error.details()
        assert len(list(running.stub.Generate(LONG))) == 402


@pytest.mark.usefixtures("large_answers")
def test_a_slow_but_steady_reader_is_not_aborted(serving: Serving) -> None:
    with serving(reader_timeout_seconds=1.5) as running:
        count = 0
        for _ in running.stub.Generate(LONG):
            count += 1
            if count % 20 == 0:
                time.sleep(0.2)
        assert count == 402


@pytest.mark.usefixtures("large_answers")
def test_time_in_which_the_server_did_not_run_does_not_count_as_unread(serving: Serving) -> None:
    with serving(reader_timeout_seconds=0.6) as running:
        call = running.stub.Generate(LONG)
        next(call)
        time.sleep(0.3)  # until the flow-control window is full

        async def freezing() -> None:
            time.sleep(2)  # noqa: ASYNC251 (blocking is intended: as SIGSTOP)

        running.run(freezing())
        assert len(list(call)) == 401


def test_a_vanished_host_is_detected_by_keepalive(serving: Serving) -> None:
    """A proxy stops forwarding, as with a pulled cable: neither side closes the connection."""
    with (
        serving(keepalive_seconds=1.0) as running,
        Proxy(running.address) as proxy,
        grpc.insecure_channel(proxy.address) as channel,
        fault_injection.armed("pass", fault_injection.stalling(0.1)),
    ):
        stub: Any = explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Generate(LONG)
        next(call)
        proxy.is_cut.set()
        until(lambda: running.server.engine_thread.num_unfinished == 0, seconds=15)
        call.cancel()


def test_connections_are_replaced_while_their_streams_go_on(serving: Serving) -> None:
    """Clients then resolve the name again, and find servers that were added."""
    connections = 0

    def counted() -> Iterator[None]:
        nonlocal connections
        while True:
            connections += 1
            yield None

    with (
        serving(connection_seconds=0.3) as running,
        cutting(running.address, counted()) as proxy,
        grpc.insecure_channel(proxy.target) as channel,
        fault_injection.armed("pass", fault_injection.stalling(0.02)),
    ):
        stub: Any = explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Generate(pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=90))
        next(call)
        limit = time.monotonic() + 1.5
        while time.monotonic() < limit:
            stub.GetServerInfo(pb.GetServerInfoRequest())  # none fails
        assert connections > 2
        assert call.is_active()
        assert len(list(call)) == 91


class Proxy:
    """Forwards bytes between one client and a server until it is cut."""

    def __init__(self, target: str) -> None:
        self.is_cut = threading.Event()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_cut.set()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        host, _, port = self._target.rpartition(":")
        server = socket.create_connection((host, int(port)))
        self._sockets += [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.is_cut.is_set():
                    return
                sink.sendall(data)
        except OSError:
            return
