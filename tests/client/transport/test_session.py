"""A session decides for both clients which error a call has, which target is next, and which events are yielded."""

from __future__ import annotations

import grpc
import pytest

from client.transport.conftest import Failure
from gradellm.errors import InvalidRequestError, UnavailableError
from gradellm.models import Event
from gradellm.transport import calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.retry import Retry
from gradellm.transport.session import Session
from gradellm.v1 import explainer_pb2 as pb


def session(target: str = "a:1,b:2", retry: Retry | None = Retry()) -> Session:  # noqa: B008
    return Session(target, token=None, tls=False, credentials=None, retry=retry)


def test_a_failed_target_is_skipped_without_a_delay() -> None:
    both, call = session(), calls.server_info({})
    attempts = both.attempts(call, both.retry)
    assert both.rotation.pick() == 0
    assert both.next_delay(Failure(grpc.StatusCode.UNAVAILABLE), call, attempts, 0) == 0.0
    assert [both.rotation.pick() for _ in range(2)] == [1, 1]


def test_without_a_policy_the_first_failure_is_raised_with_its_cause() -> None:
    single, call = session("a:1", None), calls.server_info({})
    failure = Failure(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(UnavailableError) as caught:
        single.next_delay(failure, call, single.attempts(call, single.retry), 0)
    assert caught.value.__cause__ is failure


def test_an_invalid_request_does_not_take_its_target_out() -> None:
    both, call = session(), calls.server_info({})
    with pytest.raises(InvalidRequestError):
        both.next_delay(Failure(grpc.StatusCode.INVALID_ARGUMENT), call, both.attempts(call, both.retry), 0)
    assert [both.rotation.pick() for _ in range(2)] == [0, 1]


def test_progress_of_the_prompt_is_passed_to_on_event_only() -> None:
    single, call = session("a:1"), calls.generate("Once", {})
    stream, attempts = ResumableStream(call), single.attempts(call, single.retry)
    events: list[Event] = []
    progress = pb.GenerateResponse(prompt_progress=pb.Progress(done=0.5))
    assert single.accept(progress, stream, attempts, 0, events.append) is None
    assert single.accept(progress, stream, attempts, 0, events.append) is None  # repeated
    token = pb.GenerateResponse(token=pb.Token(index=0, id=3))
    assert single.accept(token, stream, attempts, 0, events.append) == events[-1]
    assert len(events) == 2
    assert attempts.has_begun


def test_sessions_of_several_callers_share_the_rotation() -> None:
    first = session("localhost:1,localhost:2")
    second = first.with_token("secret")
    first.rotation.mark_down(0)
    assert second.rotation.pick() == 1
    assert (first.credentials.metadata, second.credentials.metadata) == ((), (("authorization", "Bearer secret"),))


def test_metadata_is_added_to_that_of_the_credentials() -> None:
    first = session("localhost:1").with_token("secret")
    traced = first.with_metadata([("traceparent", "00-a-b-01")])
    assert traced.credentials.metadata == (("authorization", "Bearer secret"), ("traceparent", "00-a-b-01"))
    assert first.credentials.metadata == (("authorization", "Bearer secret"),)
    assert traced.rotation is first.rotation
