"""One client's limits: never more than they say, however many ask at once, and exact about when there is room."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest

from gradellm_server.auth.quota import Meter, Quota, TooManyStreamsError, TooManyTokensError
from gradellm_server.auth.tokens import Client


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class FakeStream:
    max_num_tokens: int
    ids: list[int] = field(default_factory=list)
    has_run: bool = True


def quota_of(clock: Clock, **limits: int) -> Quota:
    return Quota(Client("alice", (), **limits), clock)  # type: ignore[arg-type]


def test_tokens_come_back_a_minute_after_they_were_charged() -> None:
    clock = Clock()
    quota = quota_of(clock, tokens_per_minute=100)
    quota.charge(60)
    clock.seconds += 20
    quota.charge(40)
    with pytest.raises(TooManyTokensError, match="100 a minute, of which 0 are left now") as refused:
        quota.charge(1)
    assert refused.value.retry_seconds == 40
    with pytest.raises(TooManyTokensError) as refused:
        quota.charge(61)
    assert refused.value.retry_seconds == 60  # the second charge must be over, too
    clock.seconds += 39.9
    with pytest.raises(TooManyTokensError):
        quota.charge(1)
    clock.seconds += 0.1
    quota.charge(60)


def test_what_can_never_fit_is_told_without_a_time_to_come_back() -> None:
    with pytest.raises(TooManyTokensError, match="ask for fewer") as refused:
        quota_of(Clock(), tokens_per_minute=100).charge(101)
    assert refused.value.retry_seconds is None


def test_unused_tokens_are_given_back_at_once_and_only_once() -> None:
    clock = Clock()
    quota = quota_of(clock, tokens_per_minute=100)
    charge = quota.charge(100)
    quota.settle(charge, 30)
    late = quota.charge(70)
    clock.seconds += 61
    quota.charge(100)
    quota.settle(late, 0)  # its minute is over: nothing to give back
    with pytest.raises(TooManyTokensError):
        quota.charge(1)


def test_any_minute_is_within_the_limit() -> None:
    clock, draw = Clock(), random.Random(0)
    quota = quota_of(clock, tokens_per_minute=1000)
    admitted: list[tuple[float, int]] = []
    for _ in range(3000):
        clock.seconds += draw.expovariate(4)
        count = draw.randint(1, 300)
        try:
            charge = quota.charge(count)
        except TooManyTokensError as refused:
            wait = refused.retry_seconds or 0.0
            assert 0 < wait <= 60
            clock.seconds += wait + 1e-6
            charge = quota.charge(count)  # there is room when it was said
        used = draw.randint(0, count)
        quota.settle(charge, used)
        admitted.append((clock.seconds, used))
        recent = sum(tokens for at, tokens in admitted if at > clock.seconds - 60)
        assert recent <= 1000


def test_limits_hold_for_many_threads() -> None:
    quota = quota_of(Clock(), max_concurrent_streams=5, tokens_per_minute=97)
    most, lock, start = [0, 0], threading.Lock(), threading.Barrier(16)

    def call(_: int) -> int:
        start.wait(20)
        charged = 0
        for _ in range(200):
            try:
                quota.open_stream()
            except TooManyStreamsError:
                continue
            with lock:
                most[0] = max(most[0], quota.num_streams)
            try:
                quota.charge(3)
                charged += 3
            except TooManyTokensError:
                pass
            quota.close_stream()
        return charged

    with ThreadPoolExecutor(16) as pool:
        charged = sum(pool.map(call, range(16)))
    assert charged == 96
    assert most[0] <= 5
    assert quota.num_streams == 0


def test_a_request_is_charged_from_when_it_runs_whatever_its_client_takes_of_it() -> None:
    quota = quota_of(Clock(), tokens_per_minute=100)
    for has_run, left in ((False, 100), (True, 93)):
        meter = Meter(quota)
        stream = meter.metered(lambda: FakeStream(100, list(range(7)), has_run))()  # noqa: B023 (called at once)
        with pytest.raises(TooManyTokensError):
            quota.charge(1)
        assert len(stream.ids) == 7
        meter.settle()
        meter.settle()
        with pytest.raises(TooManyTokensError):
            quota.charge(left + 1)


def test_a_call_that_ended_while_it_was_read_is_not_charged() -> None:
    quota = quota_of(Clock(), tokens_per_minute=100)
    meter = Meter(quota)
    read = meter.metered(lambda: FakeStream(100))
    meter.settle()
    read()
    quota.charge(100)


def test_without_a_quota_nothing_is_measured() -> None:
    meter = Meter(None)
    read = partial(FakeStream, 100)
    assert meter.metered(read) is read
    meter.settle()
