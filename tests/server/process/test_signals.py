"""Limits, retry delays of rejected requests, and drains."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradellm import Client, DeadlineExceededError, OverloadedError, UnavailableError
from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.faithfulness.settings import MAX_EVALUATION_SEQUENCES, MAX_EVALUATION_STEP_TOKENS
from gradellm_server import fault_injection
from server.conftest import RunningServer, Serving
from server.test_disconnects import until
from server.process.test_process import serving as process_serving

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


def retry_seconds(error: grpc.RpcError) -> float | None:
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return None


def refused(server: RunningServer) -> tuple[grpc.StatusCode, float | None]:
    with pytest.raises(grpc.RpcError) as raised:
        list(server.stub.Generate(LONG))
    error: Any = raised.value
    return error.code(), retry_seconds(error)


def test_server_info_has_every_limit(serving: Serving) -> None:
    with (
        serving(
            max_running=3, max_queued=5, max_queued_tokens=700, max_message_bytes=9000, reader_timeout_seconds=7
        ) as (running),
        Client(running.address, retry=None) as client,
    ):
        limits = client.server_info().limits
        assert (limits.max_running_requests, limits.max_queued_requests, limits.max_queued_tokens) == (3, 5, 700)
        assert (limits.max_message_bytes, limits.reader_timeout_seconds) == (9000, 7)
        assert (limits.max_evaluation_sequences, limits.max_evaluation_step_tokens) == (
            MAX_EVALUATION_SEQUENCES,
            MAX_EVALUATION_STEP_TOKENS,
        )
        assert limits.max_prompt_tokens == running.engine.max_prompt_tokens
        assert limits.max_new_tokens == running.engine.max_new_tokens


def test_errors_name_the_exceeded_limit(serving: Serving) -> None:
    with (
        serving(max_running=1, max_queued=0, max_message_bytes=3000) as small,
        Client(small.address, retry=None) as client,
    ):
        limits = client.server_info().limits
        with pytest.raises(InvalidRequestError, match=str(limits.max_prompt_tokens)):
            client.explain("a" * 300, max_new_tokens=1)
        with pytest.raises(InvalidRequestError, match=str(limits.max_new_tokens)):
            client.explain("a", max_new_tokens=limits.max_new_tokens + 1)
        with pytest.raises(InvalidRequestError, match="3000"):  # gRPC's own message; a retry fails as well
            client.explain("a" * 4000, max_new_tokens=1)
        with pytest.raises(InvalidRequestError, match=f"{MAX_EVALUATION_SEQUENCES:,}"):
            client.evaluate("a" * 90, completion="b" * 100, methods=["random"], samples=1000, stride=1)
        call = small.stub.Generate(LONG)
        next(call)
        with pytest.raises(OverloadedError, match=r"requests running, \d queued \(limits 1 and 0\)") as raised:
            client.explain("a", max_new_tokens=1)
        assert raised.value.retry_after_seconds is not None
        assert raised.value.reason == "QUEUE_FULL"
        call.cancel()


def test_the_retry_delay_estimates_the_remaining_time(serving: Serving) -> None:
    with serving(max_running=1, max_queued=0) as small, fault_injection.armed("pass", fault_injection.stalling(0.02)):
        began = time.monotonic()
        first = small.stub.Generate(LONG)
        for _ in range(60):
            next(first)
        rejected_at = time.monotonic()
        code, seconds = refused(small)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert seconds is not None
        later = refused(small)[1]
        assert later is not None
        assert later > seconds  # two rejected clients do not retry at the same moment
        list(first)
        took = time.monotonic() - rejected_at
        assert took / 3 <= seconds <= 3 * took, (seconds, took, rejected_at - began)


def test_a_drain_finishes_running_calls_and_rejects_new_ones(serving: Serving) -> None:
    with serving(max_running=4) as running:
        calls = [running.stub.Generate(LONG) for _ in range(6)]  # two of them are queued
        next(calls[0])
        until(lambda: running.server.engine_thread.num_unfinished == 6)
        stopping = threading.Thread(target=lambda: running.run(running.server.stop(60)))
        with fault_injection.armed("pass", fault_injection.stalling(0.005)):
            stopping.start()
            time.sleep(0.1)
            code, seconds = refused(running)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert seconds is not None
            with Client(running.address, retry=None) as client, pytest.raises(UnavailableError) as raised:
                client.explain("a", max_new_tokens=1)
            assert raised.value.reason == "SHUTTING_DOWN"
        for call in calls:
            assert list(call)[-1].HasField("finished")
        stopping.join(20)
        assert not stopping.is_alive()


def test_calls_beyond_the_grace_period_are_aborted(serving: Serving) -> None:
    with serving() as running, fault_injection.armed("pass", fault_injection.stalling(0.05)):
        call = running.stub.Generate(LONG)
        next(call)
        began = time.monotonic()
        assert running.run(running.server.stop(1.0))
        assert time.monotonic() - began < 3
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in error.details()


def test_sigterm_under_sixteen_streams_loses_none() -> None:
    with process_serving("--grace-seconds", "60") as (process, address), grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_stream(
            "/gradellm.v1.ExplainerService/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        request = pb.GenerateRequest(
            input=pb.Input(prompt="Once"), max_new_tokens=60, attribution=pb.AttributionOptions()
        )
        calls = [call(request) for _ in range(16)]
        for stream in calls:
            next(stream)
        process.send_signal(signal.SIGTERM)
        for stream in calls:
            assert list(stream)[-1].HasField("finished")
        assert process.wait(20) == 0


def test_a_server_can_be_stopped_twice(serving: Serving) -> None:
    with serving() as running:
        running.run(asyncio.wait_for(running.server.stop(1.0), 10))


def test_streams_go_on_after_sigstop(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP during a pass, for longer than a pass may take."""
    monkeypatch.setenv(fault_injection.VARIABLE, "tokenizer=stall:3@30")
    with (
        process_serving("--allow-faults", "--stall-seconds", "2", "--reader-timeout", "2") as (process, address),
        Client(address, retry=None) as client,
    ):
        with suppress(DeadlineExceededError):  # of the call that stalls the reading thread
            for _ in range(40):
                client.tokenize("Once", timeout=0.4)
        stream = client.generate("Once upon a time", max_new_tokens=5, attribution=None)
        waiting = threading.Thread(target=lambda: events.extend(stream))
        events: list[Any] = []
        waiting.start()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.2)
        process.send_signal(signal.SIGCONT)
        waiting.join(20)
        assert events[-1].finished is not None
        assert process.poll() is None
