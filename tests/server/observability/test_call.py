"""A call's id, client and observers; a failing observer harms no call."""

from __future__ import annotations

import logging

import pytest
from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.observability.call import Call, CallObserver, CallObservers, current_client


class Recorder(CallObserver):
    """Records its notifications."""

    def __init__(self) -> None:
        self.notifications: list[str] = []

    def on_start(self, call: Call) -> None:
        self.notifications.append("start")

    def on_request(self, call: Call, request: Message) -> None:
        self.notifications.append(type(request).__name__)

    def on_response(self, call: Call, response: Message) -> None:
        self.notifications.append(call.stats.kind)

    def on_end(self, call: Call) -> None:
        self.notifications.append(call.code)


class Failing(Recorder):
    """Fails at every notification."""

    def on_start(self, call: Call) -> None:
        raise ValueError("cannot begin")

    def on_end(self, call: Call) -> None:
        raise ValueError("cannot end")


def test_a_client_request_id_is_used_if_it_fits_a_log_line() -> None:
    assert Call.start("Generate", [("x-request-id", "job-7/a.b:c")]).id == "job-7/a.b:c"
    for wrong in ("two\nlines", "sp ace", "x" * 129, "", "ü"):
        call_id = Call.start("Generate", [("x-request-id", wrong)]).id
        assert call_id != wrong
        assert len(call_id) == 32


def test_the_call_carries_the_interceptors_client() -> None:
    assert Call.start("Generate", None).client is None
    token = current_client.set("alice")
    try:
        assert Call.start("Generate", ()).client == "alice"
    finally:
        current_client.reset(token)


def test_a_failing_observer_does_not_fail_calls_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    observers = CallObservers([Failing(), recorder])
    call = Call("Generate")
    with caplog.at_level(logging.ERROR):
        observers.on_start(call)
        observers.on_request(call, pb.GenerateRequest())
        observers.on_response(call, pb.GenerateResponse(progress=pb.Progress(done=0.5)))
        observers.on_end(call)
    assert recorder.notifications == ["start", "GenerateRequest", "progress", "CANCELLED"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["Failing"]
    assert call.num_responses == 1
    assert call.ended_at is not None
    assert call.seconds >= 0


def test_a_rejected_call_starts_and_ends() -> None:
    recorder = Recorder()
    CallObservers([recorder]).on_rejected("Generate", None, "UNAUTHENTICATED", "UNAUTHENTICATED")
    assert recorder.notifications == ["start", "UNAUTHENTICATED"]
