"""Random requests: repeatable, with the given means and shares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm_bench.capacity.traffic import Mode, Traffic


def test_traffic_is_repeatable_and_has_its_means() -> None:
    traffic = Traffic(10.0, prompt_tokens=200, answer_tokens=50, max_new_tokens=500, explained=0.5, evaluations=0.1)
    requests = traffic.requests(4000, seed=1)
    assert requests == traffic.requests(4000, seed=1)
    assert requests != traffic.requests(4000, seed=2)
    assert requests[-1].arrival == pytest.approx(400, rel=0.1)
    assert sum(record.prompt_tokens for record in requests) / 4000 == pytest.approx(200, rel=0.05)
    assert sum(record.answer_tokens for record in requests) / 4000 == pytest.approx(50, rel=0.05)
    shares = {mode: sum(record.mode is mode for record in requests) / 4000 for mode in Mode}
    assert shares[Mode.EVALUATE] == pytest.approx(0.1, abs=0.03)
    assert shares[Mode.PLAIN] == pytest.approx(0.45, abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"prompt_tokens": 1}, "prompt_tokens"),
        ({"explained": 1.5}, "explained"),
        ({"spread": -1.0}, "spread"),
        ({"context_tokens": 100}, "do not fit"),
    ],
)
def test_traffic_that_cannot_be_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Traffic(1.0), **wrong)  # type: ignore[arg-type]


def test_requests_fit_the_context_and_reserve_their_longest_answer() -> None:
    traffic = Traffic(1.0, 300, 100, 1.5, 200, 512, explained=0.5, evaluations=0.3)
    requests = traffic.requests(1000, seed=0)
    assert {record.mode for record in requests} == set(Mode)
    for record in requests:
        assert min(record.prompt_tokens, record.answer_tokens) >= 2
        assert record.answer_tokens <= 200
        assert record.prompt_tokens + record.answer_tokens <= 512
        longest = record.answer_tokens if record.mode is Mode.EVALUATE else 200
        assert record.slots == min(512, record.prompt_tokens + longest)


def test_without_spread_all_lengths_are_the_mean() -> None:
    requests = Traffic(1.0, 30, 10, spread=0.0).requests(20, seed=0)
    assert {(record.prompt_tokens, record.answer_tokens) for record in requests} == {(30, 10)}
