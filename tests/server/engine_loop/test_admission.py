"""Admission control: the limits of the queue, and the retry delays of rejected requests."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server import fault_injection
from gradellm_server.engine_loop.admission import AdmissionControl
from gradellm_server.engine_loop.errors import QueueFullError
from server.conftest import Serving, rejection

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


@dataclass(frozen=True)
class Queued:
    """What admission reads of a request."""

    num_slot_tokens: int
    seconds: float = 1.0
    is_followed: bool = False


def admission(
    running: tuple[Queued, ...], waiting: tuple[Queued, ...], *, max_queued: int = 2, max_queued_tokens: int = 100
) -> AdmissionControl:
    """Admission to an engine with a limit of two running requests."""
    scheduler = SimpleNamespace(
        max_running=2, max_followed=3, running=running, waiting=waiting, seconds_left=lambda r: r.seconds
    )
    engine: Any = SimpleNamespace(scheduler=scheduler)
    return AdmissionControl(engine, max_queued=max_queued, max_queued_tokens=max_queued_tokens)


def test_requests_that_are_not_read_yet_count_as_queued() -> None:
    control = admission((Queued(5), Queued(5)), ())
    control.check_queue(3)
    with pytest.raises(QueueFullError, match=r"2 requests running, 2 queued \(limits 2 and 2\)"):
        control.check_queue(4)


def test_followed_requests_have_a_limit_of_their_own() -> None:
    control = admission((Queued(5), Queued(5, is_followed=True)), ())
    control.check_queue(4, is_followed=True)
    with pytest.raises(QueueFullError, match=r"1 completions followed, 4 queued \(limits 3 and 2\)"):
        control.check_queue(5, is_followed=True)


def test_without_a_queue_the_running_slots_can_be_filled() -> None:
    control = admission((), (), max_queued=0)
    control.check_queue(1)
    with pytest.raises(QueueFullError, match=r"0 requests running, 2 queued \(limits 2 and 0\)"):
        control.check_queue(2)


def test_the_token_limit_is_inclusive_and_one_request_may_exceed_it() -> None:
    longer: Any = Queued(101)
    admission((Queued(1000),), ()).check_tokens(longer)  # tokens of running requests do not count
    for queued, more, fits in ((60, 40, True), (60, 41, False), (101, 1, False)):
        control = admission((), (Queued(queued),))
        request: Any = Queued(more)
        words = rf"1 queued requests have {queued} tokens \(limit 100 tokens\)"
        with nullcontext() if fits else pytest.raises(QueueFullError, match=words):
            control.check_tokens(request)


def test_a_queue_full_of_tokens_rejects_before_a_request_is_read() -> None:
    admission((), (Queued(99),)).check_queue(1)
    with pytest.raises(QueueFullError, match="100 tokens"):
        admission((), (Queued(100),)).check_queue(1)


def test_retry_delays() -> None:
    """With two slots, requests complete after 2, 3 (running), 2 + 4 and 3 + 5 s."""
    running, waiting = (Queued(9, 2.0), Queued(9, 3.0)), (Queued(50, 4.0), Queued(40, 5.0))
    control = admission(running, waiting)
    delays = []
    for _ in range(4):
        with pytest.raises(QueueFullError) as rejected:
            control.check_queue(4)
        delays.append(rejected.value.retry_seconds)
    assert delays == [2.0, 3.0, 6.0, 8.0]
    # By tokens: room for 11 to 60 more tokens is there once the first queued request starts, for 61 once both have.
    for more, seconds in ((11, 2.0), (60, 2.0), (61, 3.0)):
        request: Any = Queued(more)
        with pytest.raises(QueueFullError) as rejected:
            control.check_tokens(request)
        assert rejected.value.retry_seconds == seconds


def test_the_retry_delay_estimates_the_remaining_time(serving: Serving) -> None:
    with serving(max_running=1, max_queued=0) as small, fault_injection.armed("pass", fault_injection.stalling(0.02)):
        began = time.monotonic()
        first = small.stub.Generate(LONG)
        for _ in range(60):
            next(first)
        rejected_at = time.monotonic()
        code, seconds = rejection(small, LONG)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert seconds is not None
        later = rejection(small, LONG)[1]
        assert later is not None
        assert later > seconds  # two rejected clients do not retry at the same moment
        list(first)
        took = time.monotonic() - rejected_at
        assert took / 3 <= seconds <= 3 * took, (seconds, took, rejected_at - began)
