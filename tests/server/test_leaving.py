"""A client that goes away frees its slot within one step, queued or running, by cancel, deadline or disconnect."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.decoder import Decoder, ExplainedPass
from gradellm_engine.passes import Part
from server.conftest import RunningServer, Serving

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


class Steps:
    """Counts a decoder's explained steps, and makes each take a while."""

    def __init__(self) -> None:
        self.count = 0

    def slow(self, decoder: Decoder) -> Callable[[Sequence[Part]], ExplainedPass]:
        original = decoder.explained_pass

        def step(parts: Sequence[Part]) -> ExplainedPass:
            self.count += 1
            time.sleep(0.02)
            return original(parts)

        return step


@pytest.fixture
def steps(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    counter = Steps()
    decoder = server.engine._model.decoder
    monkeypatch.setattr(decoder, "explained_pass", counter.slow(decoder))
    return counter  # type: ignore[return-value]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.001)


def steps_after_leaving(server: RunningServer, steps: Steps, leave: Callable[[], object]) -> int:
    """Steps begun after the server has noticed that a client left."""
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
    decoder = server.engine._model.decoder
    original, chunks, going = decoder.read, [], threading.Event()

    def read(parts: Sequence[Part]) -> None:
        chunks.append(len(parts[0].ids))
        going.set()
        time.sleep(0.1)
        original(parts)

    monkeypatch.setattr(decoder, "read", read)
    monkeypatch.setattr("gradellm_engine.scheduler.MAX_PIECE_TOKENS", 20)
    call = server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt="a" * 200), max_new_tokens=2))
    going.wait(10)
    call.cancel()
    until(lambda: server.server.engine_thread.num_running == 0)
    assert len(chunks) <= 3


def test_leaving_the_queue_frees_the_place_at_once(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(max_running=1, max_queued=1) as small:
        decoder = small.engine._model.decoder
        monkeypatch.setattr(decoder, "explained_pass", Steps().slow(decoder))
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


def test_a_reader_that_stops_reading_does_not_hold_up_others(server: RunningServer) -> None:
    unread = server.stub.Generate(LONG)
    next(unread)
    assert len(list(server.stub.Generate(LONG))) == 402
    unread.cancel()
