"""Health: `ready` and `live`, up to date within two seconds whatever the engine does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server import fault_injection, server
from gradellm_server.rpc.rpcs import SERVICE_NAME
from gradellm_server.settings import ListenError, ServerSettings
from gradellm_server.warm_up import warm_up
from server.conftest import RunningServer, Serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY = ("", SERVICE_NAME, "ready")
LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


def health_status(channel: grpc.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2).status)


def seconds_until(channel: grpc.Channel, service: str, status: int, limit: float = 5.0) -> float:
    began = time.monotonic()
    while health_status(channel, service) != status:
        assert time.monotonic() - began < limit, f"{service!r} did not become {status}"
        time.sleep(0.02)
    return time.monotonic() - began


def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    error: Any = raised.value
    return error.code(), error.details()


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    assert not fault_injection.ARMED


def test_a_server_that_serves_is_ready_and_live(server: RunningServer) -> None:
    for name in (*READY, "live"):
        assert health_status(server.channel, name) == SERVING


def test_live_but_not_ready_before_warm_up_and_after_a_stop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(address: str, service: str) -> int:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status)

    seen: dict[str, list[int]] = {}

    async def test() -> None:
        new_server = server.Server(ServerSettings(listen="127.0.0.1:0", health_listen="127.0.0.1:0"))
        address = await new_server.serve_health()
        assert address is not None
        original = warm_up

        async def telling(*arguments: Any) -> None:
            seen["loading"] = [await check(address, name) for name in (*READY, "live")]
            await original(*arguments)

        monkeypatch.setattr(server, "warm_up", telling)
        await new_server.start(engine)
        seen["serving"] = [await check(address, name) for name in (*READY, "live")]
        async with grpc.aio.insecure_channel(new_server.address) as channel:
            generate: Any = channel.unary_stream("/gradellm.v1.ExplainerService/Generate")
            call = generate(LONG.SerializeToString())
            await call.read()
            stopping = asyncio.create_task(new_server.stop(30))
            await asyncio.sleep(0.05)
            seen["stopping"] = [await check(address, name) for name in (*READY, "live")]
            call.cancel()
        await stopping

    asyncio.run(asyncio.wait_for(test(), 60))
    assert seen["loading"] == [NOT_SERVING] * 3 + [SERVING]
    assert seen["serving"] == [SERVING] * 4
    assert seen["stopping"] == [NOT_SERVING] * 3 + [SERVING]


def test_the_health_port_serves_health_alone(serving: Serving) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(health_listen=f"127.0.0.1:{port}"), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert health_status(channel, "ready") == SERVING
        call: Any = channel.unary_unary("/gradellm.v1.ExplainerService/GetServerInfo")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=5)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_used_health_port_is_refused() -> None:
    async def test() -> None:
        with socket.socket() as used:
            used.bind(("127.0.0.1", 0))
            used.listen()
            new_server = server.Server(
                ServerSettings(listen="127.0.0.1:0", health_listen=f"127.0.0.1:{used.getsockname()[1]}")
            )
            with pytest.raises(ListenError, match="health checks"):
                await new_server.serve_health()
            await new_server.stop(0)

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_killed_engine_ends_all_streams_and_is_not_serving_within_two_seconds(serving: Serving) -> None:
    with serving(max_running=2) as running:
        calls = [running.stub.Generate(LONG) for _ in range(3)]  # two run, one waits
        next(calls[0])
        with fault_injection.armed("engine", fault_injection.kill, times=1):
            killed = time.monotonic()
            for call in calls:
                code, message = code_of(call)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "has failed" in message
            for name in (*READY, "live"):
                seconds_until(running.channel, name, NOT_SERVING)
            assert time.monotonic() - killed < 2
            assert code_of(running.stub.Generate(LONG))[0] is grpc.StatusCode.UNAVAILABLE
        assert running.server.engine_thread.num_unfinished == 0


def test_a_stalled_engine_is_not_serving_until_it_recovers(serving: Serving) -> None:
    with serving(stall_seconds=0.6) as running:
        call = running.stub.Generate(LONG)
        next(call)
        with fault_injection.armed("pass", fault_injection.stalling(3.0), times=1):
            code, message = code_of(call)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "is stalled in a pass" in message
            assert seconds_until(running.channel, "live", NOT_SERVING) < 2
            assert health_status(running.channel, "ready") == NOT_SERVING
            assert code_of(running.stub.Generate(LONG))[0] is grpc.StatusCode.UNAVAILABLE
            seconds_until(running.channel, "live", SERVING, limit=10)
        assert len(list(running.stub.Generate(LONG))) == 402


def test_a_busy_engine_stays_live_even_in_a_pass_that_is_long(serving: Serving) -> None:
    with serving(stall_seconds=2.0) as running, fault_injection.armed("pass", fault_injection.stalling(0.8), times=3):
        call = running.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=3))
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for name in ("ready", "live"):
                began = time.monotonic()
                assert health_status(running.channel, name) == SERVING
                assert time.monotonic() - began < 1
        assert len(list(call)) == 5


def freeze(running: RunningServer, seconds: float) -> None:
    """Block the event loop, as SIGSTOP stops all threads of a process."""

    async def freezing() -> None:
        time.sleep(seconds)  # noqa: ASYNC251 (blocking is intended)

    running.run(freezing())


def test_time_in_which_the_process_did_not_run_is_no_stall(serving: Serving) -> None:
    with serving(stall_seconds=1.0) as running:
        stream = running.stub.Generate(LONG)
        next(stream)
        with fault_injection.armed("pass", fault_injection.stalling(1.5), times=1) as fault:
            while not fault.num_hits:
                time.sleep(0.01)
            freeze(running, 1.3)
            time.sleep(0.1)  # for checks during the pass
            assert running.server.engine_thread.heartbeat_age > 1.0
            assert health_status(running.channel, "live") == SERVING
        assert len(list(stream)) == 401


def test_an_idle_engine_stays_live(serving: Serving) -> None:
    with serving(stall_seconds=0.6) as running:
        time.sleep(1.5)
        assert health_status(running.channel, "live") == SERVING
