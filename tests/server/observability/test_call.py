"""What is known of a call, and that those who watch calls harm none."""

from __future__ import annotations

import logging

import pytest
from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.observability.call import Call, CallObserver, Watchers, current_client


class Recorder(CallObserver):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def began(self, call: Call) -> None:
        self.told.append("began")

    def read(self, call: Call, request: Message) -> None:
        self.told.append(type(request).__name__)

    def answered(self, call: Call, answer: Message) -> None:
        self.told.append(call.facts.kind)

    def ended(self, call: Call) -> None:
        self.told.append(call.code)


class Failing(Recorder):
    """Fails at everything."""

    def began(self, call: Call) -> None:
        raise ValueError("cannot begin")

    def ended(self, call: Call) -> None:
        raise ValueError("cannot end")


def test_an_own_id_is_kept_where_it_fits_a_line() -> None:
    assert Call.arriving("Generate", [("x-request-id", "job-7/a.b:c")]).id == "job-7/a.b:c"
    for wrong in ("two\nlines", "sp ace", "x" * 129, "", "ü"):
        made = Call.arriving("Generate", [("x-request-id", wrong)]).id
        assert made != wrong
        assert len(made) == 32


def test_the_client_is_whom_the_gate_found() -> None:
    assert Call.arriving("Generate", None).client is None
    token = current_client.set("alice")
    try:
        assert Call.arriving("Generate", ()).client == "alice"
    finally:
        current_client.reset(token)


def test_one_that_fails_harms_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    watchers = Watchers([Failing(), recorder])
    call = Call("Generate")
    with caplog.at_level(logging.ERROR):
        watchers.began(call)
        watchers.read(call, pb.GenerateRequest())
        watchers.answered(call, pb.GenerateResponse(progress=pb.Progress(done=0.5)))
        watchers.ended(call)
    assert recorder.told == ["began", "GenerateRequest", "progress", "CANCELLED"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["Failing"]
    assert call.num_answers == 1
    assert call.ended is not None
    assert call.seconds >= 0


def test_a_call_that_is_turned_away_begins_and_ends() -> None:
    recorder = Recorder()
    Watchers([recorder]).turned_away("Generate", None, "UNAUTHENTICATED", "UNAUTHENTICATED")
    assert recorder.told == ["began", "UNAUTHENTICATED"]
