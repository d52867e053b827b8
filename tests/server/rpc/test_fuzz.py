"""Fuzzing: the server answers every request, or refuses it as the caller's error, and keeps running."""

from __future__ import annotations

from collections import Counter

from server.conftest import RunningServer
from support import fuzzing

SECONDS = 60  # for one request; far more than any takes, so that a hanging one fails the test


def test_a_few_hundred_requests_of_any_kind(server: RunningServer) -> None:
    codes: Counter[str] = Counter()
    for request in fuzzing.many(200, number=1):
        code, message = fuzzing.send(server.channel, request, SECONDS)
        assert code in fuzzing.ALLOWED, f"{code}: {message}: {request}"
        codes[code.name] += 1
    assert codes["OK"] >= 20  # else no request has reached the model
    assert codes["INVALID_ARGUMENT"] >= 20
    thread = server.server.engine_thread
    assert thread.is_alive
    assert thread.num_unfinished == 0
    pool = server.engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens


def test_a_seed_reproduces_the_requests() -> None:
    assert fuzzing.many(20, number=3) == fuzzing.many(20, number=3) != fuzzing.many(20, number=4)
