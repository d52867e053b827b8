"""Signals to a server process under streams: SIGTERM loses none, and they continue after SIGSTOP."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest

from gradellm import Client, DeadlineExceededError
from gradellm.v1 import explainer_pb2 as pb
from gradellm_server import fault_injection
from server.process.test_process import serving as process_serving


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
