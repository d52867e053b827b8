"""Fault points: each fails its own subject alone, and does nothing unless it is armed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import grpc
import pytest
import torch

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Request
from gradellm_server import fault_injection
from server.conftest import RunningServer, Serving
from server.test_disconnects import until

SHORT = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=4, attribution=pb.AttributionOptions())
LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    error: Any = raised.value
    code: grpc.StatusCode = error.code()
    return code


def serves(server: RunningServer) -> bool:
    return len(list(server.stub.Generate(SHORT))) == 10


def test_a_step_that_raises_fails_its_requests_alone(server: RunningServer) -> None:
    with fault_injection.armed("pass", fault_injection.failing(RuntimeError("a bug")), times=1):
        assert code_of(server.stub.Generate(SHORT)) is grpc.StatusCode.INTERNAL
    assert serves(server)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no memory")], ids=repr)
def test_an_allocation_that_fails_ends_one_request_and_the_others_finish(
    server: RunningServer, error: Exception
) -> None:
    other_calls = [server.stub.Generate(LONG) for _ in range(3)]
    for call in other_calls:
        next(call)

    def is_doomed(streams: object) -> bool:
        return any(stream.ids[-1] == 70 or stream.max_num_tokens < 60 for stream in cast("Sequence[Request]", streams))

    with fault_injection.armed("pass", fault_injection.failing(error), when=is_doomed) as fault:
        assert code_of(server.stub.Generate(SHORT)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.num_hits >= 1
    for call in other_calls:
        assert len(list(call)) == 401
    assert serves(server)
    pool = server.engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens


def test_a_slow_tokenizer_delays_a_request_and_does_not_fail_it(server: RunningServer) -> None:
    with fault_injection.armed("tokenizer", fault_injection.stalling(0.3), times=1):
        began = time.monotonic()
        assert serves(server)
        assert time.monotonic() - began >= 0.3


def test_a_client_that_is_dropped_frees_its_slot(server: RunningServer) -> None:
    with fault_injection.armed("client", fault_injection.drop, times=1, skip=5):
        call = server.stub.Generate(LONG, timeout=20)
        for _ in range(5):
            next(call)
        until(lambda: server.server.engine_thread.num_unfinished == 0)
    call.cancel()
    assert serves(server)


def test_a_full_queue_rejects_at_once_while_a_pass_runs(serving: Serving) -> None:
    with serving(max_running=1, max_queued=1) as small:
        calls = [small.stub.Generate(LONG)]
        next(calls[0])
        calls.append(small.stub.Generate(LONG))
        until(lambda: small.server.engine_thread.num_unfinished == 2)
        with fault_injection.armed("pass", fault_injection.stalling(3.0), times=1) as fault:
            until(lambda: fault.num_hits > 0)
            for _ in range(5):
                began = time.monotonic()
                with pytest.raises(grpc.RpcError) as raised:
                    list(small.stub.Generate(LONG))
                assert time.monotonic() - began < 0.5  # far less than the pass, with a margin for a busy machine
                error: Any = raised.value
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        until(lambda: small.server.engine_thread.num_unfinished == 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("engine", "POINT=ACTION"), ("moon=kill", "moon"), ("engine=melt", "melt"), ("engine=stall:x", "engine=stall:x")],
)
def test_a_malformed_description_is_refused(text: str, words: str) -> None:
    with pytest.raises(fault_injection.FaultError, match=words):
        fault_injection.parse(text)


def test_a_description_has_point_action_seconds_and_hit() -> None:
    found = fault_injection.parse("engine=kill@3, tokenizer=stall:0.01")
    assert (found["engine"].skip, found["engine"].times) == (2, 1)
    found["engine"].hit(None)
    found["engine"].hit(None)
    with pytest.raises(fault_injection.KilledError):
        found["engine"].hit(None)
    found["engine"].hit(None)


def test_a_server_refuses_faults_without_allow_faults() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gradellm_server", "--listen", "127.0.0.1:0"],
        env={**os.environ, fault_injection.VARIABLE: "engine=kill"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "--allow-faults" in ended.stderr
