"""Follow through a real channel: what Attribute computes, while tokens come; and appenders that misbehave."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from server.conftest import RunningServer, Serving

PROMPT = pb.Input(prompt="Once upon a time")
FLOAT32 = pb.UPSTREAM_DTYPE_FLOAT32
END = object()


class FollowCall:
    """A call whose requests are sent one by one, and whose events a thread collects."""

    def __init__(self, server: RunningServer, first: pb.FollowRequest | None = None) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.events: list[pb.FollowResponse] = []
        self.error: Any = None
        if first is not None:
            self.send(first)
        self._call = server.stub.Follow(self._sent())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _sent(self) -> Iterator[pb.FollowRequest]:
        while (request := self._requests.get()) is not END:
            yield request

    def _read(self) -> None:
        try:
            for event in self._call:
                self.events.append(event)
        except grpc.RpcError as error:
            self.error = error

    def send(self, request: pb.FollowRequest) -> None:
        self._requests.put(request)

    def append(self, ids: Sequence[int], logprobs: Iterable[float] = (), alternatives: Iterable[float] = ()) -> None:
        append = pb.FollowAppend(ids=ids, logprobs=logprobs, alternative_logprobs=alternatives)
        self.send(pb.FollowRequest(append=append))

    def finish(self) -> list[pb.FollowResponse]:
        self.send(pb.FollowRequest(finish=pb.FollowFinish()))
        return self.ended()

    def half_close(self) -> list[pb.FollowResponse]:
        self._requests.put(END)
        return self.ended()

    def ended(self) -> list[pb.FollowResponse]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._requests.put(END)
        return self.events

    def cancel(self) -> None:
        self._call.cancel()
        self.ended()

    def wait_for(self, kind: str, count: int) -> float:
        """Wait for so many events of a kind; returns the seconds that it took."""
        began = time.monotonic()
        while len(self.of(kind)) < count:
            assert self.error is None, self.error
            assert time.monotonic() < began + 30
            time.sleep(0.005)
        return time.monotonic() - began

    def of(self, kind: str) -> list[Any]:
        return [getattr(event, kind) for event in list(self.events) if event.WhichOneof("event") == kind]

    @property
    def status(self) -> tuple[grpc.StatusCode, str]:
        assert self.error is not None
        return self.error.code(), self.error.details()


def start(prompt: pb.Input = PROMPT, **fields: Any) -> pb.FollowRequest:
    return pb.FollowRequest(start=pb.FollowStart(input=prompt, **{"upstream_dtype": FLOAT32, **fields}))


def written(server: RunningServer, count: int, num_alternatives: int = 0) -> list[pb.Token]:
    """Tokens of another engine, with their log-probabilities."""
    draw = random.Random(5)
    ids = [draw.randrange(10, server.engine.info.vocab_size) for _ in range(count)]
    request = pb.AttributeRequest(input=PROMPT, completion_ids=ids, num_alternatives=num_alternatives)
    return [event.token for event in server.stub.Attribute(request) if event.HasField("token")]


def attributed(server: RunningServer, ids: Sequence[int], **options: Any) -> list[pb.Attribution]:
    request = pb.AttributeRequest(input=PROMPT, completion_ids=ids, attribution=pb.AttributionOptions(**options))
    return [event.attribution for event in server.stub.Attribute(request) if event.HasField("attribution")]


def test_equals_attribute(server: RunningServer) -> None:
    tokens = written(server, 40)
    ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
    call = FollowCall(server, start(attribution=pb.AttributionOptions(chunk_size=8), num_alternatives=2))
    for first in range(0, len(ids), 3):
        call.append(ids[first : first + 3], logprobs[first : first + 3])
    events = call.finish()
    assert events[0].WhichOneof("event") == "started"
    assert events[0].started.provenance.attribution.preset == pb.PRESET_STEP_RELEVANCE
    assert [token.id for token in call.of("token")] == ids
    assert [token.text for token in call.of("token")] == [token.text for token in tokens]
    assert len(call.of("token")[0].alternatives) == 2
    rows, expected = call.of("attribution"), attributed(server, ids)
    assert [row.token_index for row in rows] == list(range(len(ids)))
    for row, other in zip(rows, expected, strict=True):
        assert row.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-6)
    finished = events[-1].finished
    assert finished.reason == pb.FINISH_REASON_END_OF_COMPLETION
    assert finished.usage.attributed_tokens == len(ids)
    assert finished.agreement.tokens == len(ids)
    assert finished.agreement.verdict == pb.VERDICT_SAME
    assert finished.agreement.largest < 1e-4
    agreements = call.of("agreement")
    assert sum(each.tokens for each in agreements) == len(ids)
    assert agreements[-1].total == finished.agreement


def test_alternatives_are_compared(server: RunningServer) -> None:
    """Another model, whose chosen tokens have the same log-probabilities, shows by the others'."""
    tokens = written(server, 12, num_alternatives=5)
    ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
    others = [[each.logprob for each in token.alternatives if each.id != token.id][:4] for token in tokens]
    totals = []
    for shift in (0.0, 0.1):
        call = FollowCall(server, start(upstream_dtype=pb.UPSTREAM_DTYPE_FLOAT32))
        call.append(ids, logprobs, [value - shift for row in others for value in row])
        totals.append(call.finish()[-1].finished.agreement)
    same, other = totals
    assert (same.tokens, same.logprobs, same.verdict) == (12, 60, pb.VERDICT_SAME)
    assert (other.logprobs, other.verdict) == (60, pb.VERDICT_DIFFERENT)
    assert other.largest < 1e-4


def test_explains_chunks_and_what_is_there(server: RunningServer) -> None:
    ids = [token.id for token in written(server, 20)]
    call = FollowCall(server, start(attribution=pb.AttributionOptions(chunk_size=16), flush_seconds=0.3))
    call.append(ids[:16])
    assert call.wait_for("attribution", 16) < 20
    call.append(ids[16:18])
    assert 0.2 < call.wait_for("attribution", 18) < 20
    call.append(ids[18:])
    assert len(call.half_close()) == 1 + 40 + 1  # the end of the stream is the end of the completion
    assert call.of("finished")[0].agreement.verdict == pb.VERDICT_UNKNOWN


def test_without_tokens(server: RunningServer) -> None:
    call = FollowCall(server, start())
    assert [event.WhichOneof("event") for event in call.finish()] == ["started", "finished"]


def test_methods_over_completions(server: RunningServer) -> None:
    ids = [token.id for token in written(server, 5)]
    call = FollowCall(server, start(attribution=pb.AttributionOptions(method="saliency")))
    call.append(ids)
    call.wait_for("token", 5)
    assert not call.of("attribution")
    call.finish()
    for row, other in zip(call.of("attribution"), attributed(server, ids, method="saliency"), strict=True):
        assert row.scores == pytest.approx(other.scores, rel=1e-4)


def test_resumed(server: RunningServer) -> None:
    tokens = written(server, 24)
    ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
    whole = FollowCall(server, start())
    whole.append(ids[:16], logprobs[:16])
    whole.wait_for("attribution", 16)
    total = whole.of("agreement")[-1].total
    whole.cancel()
    rest = FollowCall(server, start(completion_ids=ids[:16], agreement=total))
    rest.append(ids[16:], logprobs[16:])
    rest.finish()
    assert [token.index for token in rest.of("token")] == list(range(16, 24))
    assert [row.token_index for row in rest.of("attribution")] == list(range(16, 24))
    assert rest.of("finished")[0].agreement.tokens == 24


def test_prompt_ids_with_places_of_messages_and_segments(server: RunningServer) -> None:
    chat = pb.Input(messages=[pb.Message(role="user", content="Hello there")])
    read = server.stub.Tokenize(pb.TokenizeRequest(input=chat))
    place = read.prompt_text.index("Hello there")
    spans = [pb.MessageSpan(role="user", start=place, end=place + 11)]
    given = pb.Input(
        prompt_ids=[token.id for token in read.tokens],
        message_spans=spans,
        segments=[pb.Segment(name="there", start=place + 6, end=place + 11)],
    )
    call = FollowCall(server, start(given))
    call.finish()
    placed = call.of("started")[0].prompt_tokens
    assert [token.role for token in placed] == [token.role for token in read.tokens]
    assert "".join(token.text for token in placed if token.segment == "there").strip() == "there"


# Appenders that misbehave: a clear error for them, and nothing lost of others.


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "start: there is none: the first message must be start"),
        ([pb.FollowRequest()], "start: is missing: the first message was empty, and must be start"),
        ([pb.FollowRequest(append=pb.FollowAppend(ids=[1]))], "start: is missing: the first message was append"),
        ([start(), start()], "start: comes twice: a call follows one completion"),
        ([start(), pb.FollowRequest()], "request: has neither append nor finish"),
        ([start(flush_seconds=-1)], "start.flush_seconds: must be 0 to 60, was -1"),
        ([start(upstream_dtype=99)], "start.upstream_dtype: 99 is not a value that this server knows"),
        ([start(completion_ids=[10**9])], r"completion_ids[0]: 1000000000 is not a token id"),
        ([start(agreement=pb.AgreementTotal(noise=float("nan")))], "start.agreement: its numbers must be finite"),
        ([start(pb.Input())], "input: give exactly one of"),
        ([start(), pb.FollowRequest(append=pb.FollowAppend(ids=[-1]))], "append.ids[0]: -1 is not a token id"),
        (
            [start(), pb.FollowRequest(append=pb.FollowAppend(ids=[1, 2], logprobs=[-1.0]))],
            "append.logprobs: are 1 for 2 ids",
        ),
        (
            [start(), pb.FollowRequest(append=pb.FollowAppend(ids=[1], logprobs=[0.5]))],
            "append.logprobs[0]: 0.5 is not a log-probability",
        ),
        (
            [start(), pb.FollowRequest(append=pb.FollowAppend(ids=[1] * 1_000_000))],
            "append.ids: 1,000,000 tokens; the limit of a completion is",
        ),
        (
            [start(max_new_tokens=4), *[pb.FollowRequest(append=pb.FollowAppend(ids=[1, 2, 3]))] * 2],
            "append.ids: 6 tokens in all; at most 4 are possible",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:30],
)
def test_errors(server: RunningServer, requests: list[pb.FollowRequest], message: str) -> None:
    bystander = FollowCall(server, start())
    call = FollowCall(server)
    for request in requests:
        call.send(request)
    if not requests:
        call.half_close()
    call.ended()
    code, details = call.status
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    bystander.append([token.id for token in written(server, 3)])
    bystander.finish()
    assert len(bystander.of("attribution")) == 3


def test_bytes_that_are_no_message(server: RunningServer) -> None:
    send: Any = server.channel.stream_stream("/gradellm.v1.ExplainerService/Follow")
    with pytest.raises(grpc.RpcError, match=r"not a valid gradellm\.v1\.FollowRequest"):
        list(send(iter([b"\xff\xff"])))


def test_nothing_is_sent(serving: Serving) -> None:
    with serving(follow_idle_seconds=0.3) as server:
        silent = [FollowCall(server), FollowCall(server, start())]
        for call in silent:
            call.ended()
            code, details = call.status
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "nothing was sent for 0.3 s, which is the limit" in details


def test_a_client_that_leaves_frees_its_slot(server: RunningServer) -> None:
    thread = server.server.engine_thread
    calls = [FollowCall(server, start()) for _ in range(3)]
    for call in calls:
        call.wait_for("started", 1)
    assert thread.num_followed == 3
    for call in calls:
        call.cancel()
    _until(lambda: thread.num_unfinished == 0)
    _until(lambda: thread.num_followed == 0)


def test_idle_followers_keep_nobody_waiting(serving: Serving) -> None:
    with serving(max_queued=1) as server:
        thread = server.server.engine_thread
        idle = [FollowCall(server, start()) for _ in range(thread.max_running + 4)]
        for call in idle:
            call.wait_for("started", 1)
        request = pb.GenerateRequest(input=PROMPT, max_new_tokens=3)
        assert len([event for event in server.stub.Generate(request) if event.HasField("token")]) == 3
        for call in idle:
            call.finish()
            assert call.error is None


def test_too_many(serving: Serving) -> None:
    with serving(max_queued=0) as server:
        thread = server.server.engine_thread
        scheduler: Any = server.engine.scheduler
        before = thread.max_followed
        thread.max_followed = scheduler.max_followed = 1
        thread._admission._max_followed = 1
        try:
            first = FollowCall(server, start())
            first.wait_for("started", 1)
            second = FollowCall(server, start())
            second.ended()
            assert second.status[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "completions followed" in second.status[1]
            first.finish()
        finally:
            scheduler.max_followed = before


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
