"""What is sent of a followed completion, in one call and in the calls after it."""

from __future__ import annotations

import math
from typing import Any

from client.conftest import started
from gradellm.following.stream import CallMessages, FollowedStream
from gradellm.following.written import WrittenToken
from gradellm.transport import calls
from gradellm.v1 import explainer_pb2 as pb


def stream() -> FollowedStream:
    return FollowedStream(calls.follow("Once upon a time", {"num_alternatives": 1}))


def taken(messages: CallMessages) -> list[Any]:
    """All messages that there are now."""
    found = []
    while (message := messages.take()) is not None:
        found.append(message)
    return found


def kinds(messages: list[Any]) -> list[str]:
    return [message.WhichOneof("request") for message in messages]


def test_messages_of_one_call() -> None:
    followed = stream()
    messages = followed.begin_call()
    first = taken(messages)
    assert kinds(first) == ["start"]
    assert first[0].start.input.prompt == "Once upon a time"
    assert first[0].start.num_alternatives == 1
    followed.append([WrittenToken(5, -1.0), WrittenToken(6)])
    followed.append([WrittenToken(7, -2.0)])
    (appended,) = taken(messages)  # one message of all that has come
    assert list(appended.append.ids) == [5, 6, 7]
    assert appended.append.logprobs[0] == -1.0
    assert math.isnan(appended.append.logprobs[1])
    assert taken(messages) == []
    assert not messages.is_over
    followed.append([WrittenToken(8, -1.0)])
    followed.finish()
    assert kinds(taken(messages)) == ["append", "finish"]
    assert messages.is_over
    assert taken(messages) == []


def test_another_call_begins_at_the_first_token_without_attribution() -> None:
    followed = stream()
    messages = followed.begin_call()
    followed.append([WrittenToken(5, -1.0), WrittenToken(6, -2.0), WrittenToken(7, -3.0), WrittenToken(8, -4.0)])
    taken(messages)

    def receive(**event: Any) -> None:
        followed.take(pb.FollowResponse(**event), "target")

    receive(started=started())
    for index in range(4):
        receive(token=pb.Token(index=index, id=5 + index))
        if index == 1:
            receive(agreement=pb.Agreement(total=pb.AgreementTotal(tokens=2, noise=0.5)))
    receive(agreement=pb.Agreement(total=pb.AgreementTotal(tokens=4, noise=0.25)))
    for index in range(3):
        receive(attribution=pb.Attribution(token_index=index, scores=[0.0] * 5))
    again = followed.begin_call()
    assert messages.is_over
    start, append = taken(again)
    assert list(start.start.completion_ids) == [5, 6, 7]
    assert start.start.agreement.tokens == 2  # the later one is of token 3, too, which is compared again
    assert start.start.max_new_tokens == 3  # as the first server resolved it
    assert list(append.append.ids) == [8]
    assert list(append.append.logprobs) == [-4.0]
    assert followed.take(pb.FollowResponse(token=pb.Token(index=3, id=8)), "target") is None  # known already


def test_the_end_of_a_call() -> None:
    followed = stream()
    messages = followed.begin_call()
    followed.end_call()
    assert messages.is_over
    assert messages.take() is None
