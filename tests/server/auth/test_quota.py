"""Quotas: limits hold under concurrency, and retry delays are exact."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest

from gradellm_server.auth.quota import Quota, QuotaReservation, TooManyStreamsError, TooManyTokensError
from gradellm_server.auth.tokens import Client


class Clock:
    """A clock that a test sets, in seconds."""

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


def test_tokens_are_available_again_a_minute_after_the_charge() -> None:
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
    assert refused.value.retry_seconds == 60  # the second charge must leave the window, too
    clock.seconds += 39.9
    with pytest.raises(TooManyTokensError):
        quota.charge(1)
    clock.seconds += 0.1
    quota.charge(60)


def test_a_request_beyond_the_limit_has_no_retry_delay() -> None:
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
    quota.settle(late, 0)  # it is outside the window: nothing to return
    with pytest.raises(TooManyTokensError):
        quota.charge(1)


def test_charges_of_any_minute_are_within_the_limit() -> None:
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
            charge = quota.charge(count)  # there is room after the retry delay
        used = draw.randint(0, count)
        quota.settle(charge, used)
        admitted.append((clock.seconds, used))
        recent = sum(tokens for seconds, tokens in admitted if seconds > clock.seconds - 60)
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


def test_a_request_that_ran_is_charged_whether_or_not_its_client_reads_it() -> None:
    quota = quota_of(Clock(), tokens_per_minute=100)
    for has_run, left in ((False, 100), (True, 93)):
        reservation = QuotaReservation(quota)
        stream = reservation.reserving(lambda: FakeStream(100, list(range(7)), has_run))()  # noqa: B023 (called at once)
        with pytest.raises(TooManyTokensError):
            quota.charge(1)
        assert len(stream.ids) == 7
        reservation.settle()
        reservation.settle()
        with pytest.raises(TooManyTokensError):
            quota.charge(left + 1)


def test_a_call_that_ended_while_its_request_was_read_is_not_charged() -> None:
    quota = quota_of(Clock(), tokens_per_minute=100)
    reservation = QuotaReservation(quota)
    build = reservation.reserving(lambda: FakeStream(100))
    reservation.settle()
    build()
    quota.charge(100)


def test_without_a_quota_nothing_is_charged() -> None:
    reservation = QuotaReservation(None)
    build = partial(FakeStream, 100)
    assert reservation.reserving(build) is build
    reservation.settle()
