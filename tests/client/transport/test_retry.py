"""Retries: which failed calls are retried and when, without waiting."""

from __future__ import annotations

import pytest

from gradellm import DeadlineExceededError, GradellmError, InvalidRequestError, OverloadedError, Retry, ServerError
from gradellm.errors import UnavailableError
from gradellm.transport.retry import Attempts


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(retry: Retry, timeout: float | None = None, *, has_replicas: bool = False, share: float = 0.0) -> Attempts:
    return Attempts(retry, timeout, has_replicas=has_replicas, clock=Clock(), jitter=lambda: share)


def unavailable(seconds: float | None = None) -> UnavailableError:
    error = UnavailableError("gone")
    error.retry_after_seconds = seconds
    return error


def pauses(tries: Attempts, count: int, error: GradellmError | None = None) -> list[float]:
    return [tries.next_delay(error or unavailable(), has_other=False) for _ in range(count)]


def test_pauses_double_and_end() -> None:
    tries = attempts(Retry(attempts=6, initial_seconds=0.2, max_seconds=1.0))
    assert pauses(tries, 5) == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])
    with pytest.raises(UnavailableError, match="gone"):
        pauses(tries, 1)


def test_delays_have_jitter_of_up_to_a_half() -> None:
    assert pauses(attempts(Retry(), share=1.0), 3) == pytest.approx([0.1, 0.2, 0.4])


def test_the_servers_retry_delay_is_used() -> None:
    overloaded = OverloadedError("full")
    overloaded.retry_after_seconds = 1.5
    assert pauses(attempts(Retry()), 2, overloaded) == [1.5, 1.5]
    assert pauses(attempts(Retry()), 1, unavailable(3.0)) == [3.0]


def test_with_replicas_only_overload_delays_are_honoured() -> None:
    assert pauses(attempts(Retry(), has_replicas=True), 1, unavailable(30.0)) == [0.2]
    overloaded = OverloadedError("full")
    overloaded.retry_after_seconds = 1.5
    assert pauses(attempts(Retry(), has_replicas=True), 1, overloaded) == [1.5]


def test_other_servers_are_tried_at_once_before_a_pause() -> None:
    tries = Attempts(Retry(attempts=3), None, num_targets=3, clock=Clock(), jitter=lambda: 0.0)
    delays = [tries.next_delay(unavailable(), has_other=True) for _ in range(6)]
    assert delays == pytest.approx([0.0, 0.0, 0.2, 0.0, 0.0, 0.4])  # even where other servers seem to be up again
    with pytest.raises(UnavailableError):
        [tries.next_delay(unavailable(), has_other=True) for _ in range(3)]


@pytest.mark.parametrize("error", [ServerError("x"), InvalidRequestError("x"), DeadlineExceededError("x")])
def test_permanent_errors_are_raised(error: GradellmError) -> None:
    with pytest.raises(type(error)):
        attempts(Retry()).next_delay(error, has_other=True)


def test_one_attempt_means_no_retry() -> None:
    with pytest.raises(UnavailableError):
        pauses(attempts(Retry(attempts=1)), 1)


def test_all_tries_share_the_timeout() -> None:
    clock = Clock()
    tries = Attempts(Retry(attempts=9), 1.0, clock=clock, jitter=lambda: 0.0)
    assert tries.seconds_left == 1.0
    assert (tries.at_most(0.4), tries.at_most(3.0)) == (0.4, 1.0)
    assert pauses(tries, 2) == pytest.approx([0.2, 0.4])
    clock.now += 0.7
    assert tries.seconds_left == pytest.approx(0.3)
    with pytest.raises(UnavailableError):  # the next pause, .8 s, is longer than what is left
        pauses(tries, 1)


def test_a_stream_that_had_begun_is_taken_up_for_longer_and_anew_after_each_progress() -> None:
    clock = Clock()
    tries = Attempts(Retry(attempts=1, resume_seconds=10, max_seconds=1), None, clock=clock, jitter=lambda: 0.0)
    tries.progressed()
    for _ in range(3):
        for _ in range(9):
            clock.now += pauses(tries, 1)[0]
        tries.progressed()
    pauses(tries, 1)
    clock.now += 10
    with pytest.raises(UnavailableError):
        pauses(tries, 1)


def test_a_broken_stream_can_be_left_broken() -> None:
    tries = attempts(Retry(resume_seconds=0))
    tries.progressed()
    with pytest.raises(UnavailableError):
        pauses(tries, 1)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"initial_seconds": -1}, {"resume_seconds": float("inf")}])
def test_settings_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        Retry(**wrong)  # type: ignore[arg-type]


def test_a_server_that_asks_for_long_is_not_waited_for() -> None:
    with pytest.raises(UnavailableError, match="gone"):
        pauses(attempts(Retry()), 1, unavailable(300.0))
    assert pauses(attempts(Retry(longest_wait_seconds=400)), 1, unavailable(300.0)) == [300.0]


def test_requests_that_never_fit_are_not_retried() -> None:
    never = OverloadedError("the request may take 403 tokens; alice may take 300 a minute")
    never.reason = "CLIENT_TOKENS_PER_MINUTE"
    with pytest.raises(OverloadedError, match="403"):
        pauses(attempts(Retry()), 1, never)


def test_waiting_is_reported_to_the_callback() -> None:
    waits: list[tuple[str, float]] = []
    retry = Retry(on_wait=lambda error, seconds: waits.append((str(error), seconds)))
    tries = Attempts(retry, None, num_targets=2, clock=Clock(), jitter=lambda: 0.0)
    assert tries.next_delay(unavailable(), has_other=True) == 0.0
    pauses(tries, 2)
    assert waits == [("gone", 0.2), ("gone", 0.4)]
