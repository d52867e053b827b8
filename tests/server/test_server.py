"""The gRPC server: what it serves on its port, and how it drains and stops."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gradellm import Client, UnavailableError
from gradellm.v1 import explainer_pb2 as pb
from gradellm_server import fault_injection
from gradellm_server.server import Server
from gradellm_server.settings import ListenError, ServerSettings
from server.conftest import RunningServer, Serving, rejection
from server.test_disconnects import until

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


def test_a_drain_finishes_running_calls_and_rejects_new_ones(serving: Serving) -> None:
    with serving(max_running=4) as running:
        calls = [running.stub.Generate(LONG) for _ in range(6)]  # two of them are queued
        next(calls[0])
        until(lambda: running.server.engine_thread.num_unfinished == 6)
        stopping = threading.Thread(target=lambda: running.run(running.server.stop(60)))
        with fault_injection.armed("pass", fault_injection.stalling(0.005)):
            stopping.start()
            time.sleep(0.1)
            code, seconds = rejection(running, LONG)
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


def test_a_server_can_be_stopped_twice(serving: Serving) -> None:
    with serving() as running:
        running.run(asyncio.wait_for(running.server.stop(1.0), 10))


def test_health_and_reflection_answer(server: RunningServer) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", "gradellm.v1.ExplainerService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert "gradellm.v1.ExplainerService" in database.get_services()
    assert database.FindFileByName("gradellm/v1/explainer.proto").package == "gradellm.v1"


def test_the_same_port_twice_is_refused(server: RunningServer) -> None:
    async def bind() -> None:
        Server(ServerSettings(listen=server.address))

    with pytest.raises(ListenError, match=f"cannot listen on {server.address}: address already in use"):
        server.run(bind())


def test_a_server_that_was_never_started_stops_and_frees_its_metrics_port() -> None:
    async def test() -> None:
        first = Server(ServerSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
        assert first.metrics_address is not None
        with pytest.raises(RuntimeError, match="has not been started"):
            first.engine_thread  # noqa: B018 (a property that raises)
        assert await first.stop(0)
        second = Server(ServerSettings(listen="127.0.0.1:0", metrics_listen=first.metrics_address))
        assert second.metrics_address == first.metrics_address
        await second.stop(0)

    asyncio.run(asyncio.wait_for(test(), 20))


def test_without_a_metrics_address_there_is_no_metrics_server(server: RunningServer) -> None:
    assert server.server.metrics_address is None


def test_an_unknown_call_is_unimplemented(server: RunningServer) -> None:
    channel: Any = server.channel
    call = channel.unary_unary("/gradellm.v1.ExplainerService/Dream")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
