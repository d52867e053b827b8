"""`Client.follow` against the fake server; `tests/server/rpc/clients/test_follow.py` runs it against a real one."""

from __future__ import annotations

import threading

import pytest
from google.rpc import code_pb2

from client.conftest import FakeServer
from gradellm import Client, Event, InvalidRequestError, Retry, UnavailableError

RETRY = Retry(attempts=3, initial_seconds=0.01, max_seconds=0.02)


def test_events_and_result(fake: FakeServer) -> None:
    seen: list[Event] = []
    with Client(fake.target) as client, client.follow("Once", on_event=seen.append) as following:
        following.append([5, 6])
        following.append([7], [-1.0])
        following.finish()
        events = list(following)
        explanation = following.result()
        assert list(following) == []  # they have been iterated
    assert events == seen
    assert [token.id for token in explanation.tokens] == [5, 6, 7]
    assert len(explanation.attributions) == 3
    assert [event.agreement.total.verdict for event in events if event.agreement is not None][-1] == "same"
    assert fake.followed[-1].HasField("finish")


def test_iterating_in_another_thread(fake: FakeServer) -> None:
    with Client(fake.target) as client, client.follow("Once") as following:
        events: list[Event] = []
        thread = threading.Thread(target=lambda: events.extend(following))
        thread.start()
        following.append([5])
        following.finish()
        thread.join(10)
        assert events[-1].finished is not None


def test_poll(fake: FakeServer) -> None:
    with Client(fake.target) as client, client.follow("Once") as following:
        following.append([5])
        following.result()
        assert len(following.poll()) == 5
        assert following.poll() == []


def test_continues_after_a_failure(fake: FakeServer) -> None:
    fake.fail(code_pb2.UNAVAILABLE, "draining")
    fake.fails_after = 2
    with Client(fake.target, retry=RETRY) as client, client.follow("Once") as following:
        following.append([5, 6, 7], [-1.0, -2.0, -3.0])
        explanation = following.result()
    assert [token.id for token in explanation.tokens] == [5, 6, 7]
    assert [row.token_index for row in explanation.attributions] == [0, 1, 2]
    starts = [request.start for request in fake.followed if request.HasField("start")]
    assert [list(start.completion_ids) for start in starts] == [[], [5, 6]]


def test_a_failure_is_raised_by_every_call(fake: FakeServer) -> None:
    fake.fail(code_pb2.UNAVAILABLE, "draining")
    fake.fails_after = 1
    with Client(fake.target, retry=None) as client, client.follow("Once") as following:
        following.append([5])
        with pytest.raises(UnavailableError, match="draining"):
            list(following)
        for fails in (following.result, following.poll, lambda: following.append([6])):
            with pytest.raises(UnavailableError, match="draining"):
                fails()


def test_leaving_cancels(fake: FakeServer) -> None:
    with Client(fake.target) as client:
        with client.follow("Once") as following:
            next(iter(following))
        assert list(following) == []  # without an error
        following.close()


def test_what_cannot_be_sent(fake: FakeServer) -> None:
    with Client(fake.target) as client, client.follow("Once") as following:
        with pytest.raises(InvalidRequestError, match="logprobs: are 1 for 2 ids"):
            following.append([5, 6], [-1.0])
        with pytest.raises(InvalidRequestError, match="ids"):
            following.append([2**40])
        following.finish()
        with pytest.raises(InvalidRequestError, match=r"append\(\) comes after finish"):
            following.append([5])
