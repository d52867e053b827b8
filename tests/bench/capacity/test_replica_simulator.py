"""The simulated scheduler: what it does by hand, and that it does what the real one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm_bench.capacity.costs import Costs, PassModel
from gradellm_bench.capacity.measurements import Kind
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.request_metrics import RequestRecord, Summary
from gradellm_bench.capacity.traffic import Mode, SimulatedRequest, Traffic
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE

STEP, SCORES, REPLAY, READ = 0.010, 0.008, 0.020, 0.001  # seconds; of a piece, a token


def model(*bases: float) -> PassModel:
    return PassModel((1, 2)[: len(bases)], bases, 0.0, rounds=False, error=0.0)


MODELS: dict[Kind, PassModel] = {
    "step": model(STEP),
    "explained_step": model(STEP),
    "scores": model(SCORES),
    "replay": model(REPLAY),
    "read": model(READ, 2 * READ),
}
COSTS = Costs(MODELS, "cpu", {}, 1000, 10**9, 1e11)
ROOMY = ReplicaSettings(max_running=8, kv_tokens=10_000)


def request(
    mode: Mode, *, arrival: float = 0.0, prompt: int = 11, answer: int = 4, slots: int = 100
) -> SimulatedRequest:
    return SimulatedRequest(arrival, prompt, answer, slots, mode)


def run(*requests: SimulatedRequest, costs: Costs = COSTS, limits: ReplicaSettings = ROOMY) -> list[RequestRecord]:
    return Replica(costs, limits).run(requests)


def test_a_plain_request_reads_and_steps() -> None:
    (record,) = run(request(Mode.PLAIN))
    assert record.tokens == pytest.approx([10 * READ + STEP * (1 + index) for index in range(4)])
    assert (record.vectors, record.refused) == ([], False)
    assert record.ended == record.tokens[-1]


def test_explained_requests_have_scores_after_each_token() -> None:
    (record,) = run(request(Mode.PER_TOKEN))
    assert record.vectors == pytest.approx([token + SCORES for token in record.tokens])
    assert record.ended == record.vectors[-1]


def test_chunks_are_explained_when_due_and_at_the_end() -> None:
    (record,) = run(request(Mode.CHUNKED, answer=DEFAULT_CHUNK_SIZE + 3))
    first, last = record.vectors[0], record.vectors[-1]
    assert record.vectors == [first] * DEFAULT_CHUNK_SIZE + [last] * 3
    assert first == pytest.approx(record.tokens[DEFAULT_CHUNK_SIZE - 1] + REPLAY)
    assert record.tokens[DEFAULT_CHUNK_SIZE] == pytest.approx(first + STEP)  # it does not decode before
    assert last == pytest.approx(record.tokens[-1] + REPLAY)


def test_streams_share_passes() -> None:
    first, second = run(request(Mode.PLAIN), request(Mode.PLAIN))
    assert first.tokens == second.tokens


def test_requests_beyond_the_queue_are_refused() -> None:
    limits = ReplicaSettings(max_running=1, kv_tokens=1000, max_queued=1)
    first, second, third = run(*[request(Mode.PLAIN, arrival=0.001 * index) for index in range(3)], limits=limits)
    assert (first.refused, second.refused, third.refused) == (False, False, True)
    assert first.ended is not None
    assert second.tokens[0] > first.ended


def test_memory_for_keys_and_values_holds_back() -> None:
    limits = ReplicaSettings(max_running=8, kv_tokens=150)
    first, second = run(request(Mode.PLAIN), request(Mode.PLAIN), limits=limits)
    assert first.ended is not None
    assert second.tokens[0] > first.ended
    with pytest.raises(ValueError, match=r"does not fit the KV cache.*150"):
        run(request(Mode.PLAIN, slots=151), limits=limits)


def test_prefill_chunks_are_small_during_decoding() -> None:
    """A running stream waits for a token about twice as long, however long the prompt is."""
    running, _ = run(request(Mode.PLAIN, answer=200), request(Mode.PLAIN, arrival=0.3, prompt=1000))
    gaps = [after - before for before, after in zip(running.tokens, running.tokens[1:], strict=False)]
    assert max(gaps) <= STEP + 16 * READ + 1e-9


def test_an_evaluation_has_low_priority() -> None:
    evaluation = request(Mode.EVALUATE, prompt=20, answer=5)
    (alone,) = run(evaluation)
    concurrent, _ = run(evaluation, request(Mode.PLAIN, answer=300))
    assert alone.ended is not None
    assert concurrent.ended is not None
    assert concurrent.ended > alone.ended + 2


def test_shapes_that_are_new_are_recorded() -> None:
    costs = replace(COSTS, recording_seconds={"step": 0.5})
    replica = Replica(costs, ROOMY)
    (record,) = replica.run([request(Mode.PLAIN)])
    assert replica.cuda_graphs == 1
    assert record.tokens[0] == pytest.approx(10 * READ + STEP + 0.5)
    assert record.tokens[1] == pytest.approx(record.tokens[0] + STEP)


REQUESTS = st.lists(
    st.builds(
        SimulatedRequest,
        st.floats(0, 1),
        st.integers(2, 40),
        st.integers(2, 40),
        st.integers(80, 120),
        st.sampled_from([Mode.PLAIN, Mode.PER_TOKEN, Mode.CHUNKED]),
    ),
    min_size=1,
    max_size=12,
)


@given(REQUESTS, st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_every_request_finishes_and_time_is_monotonic(
    requests: Sequence[SimulatedRequest], running: int, queued: int
) -> None:
    requests = sorted(requests, key=lambda record: record.arrival)
    replica = Replica(COSTS, ReplicaSettings(max_running=running, kv_tokens=240, max_queued=queued))
    served = replica.run(requests)
    for record in served:
        if record.refused:
            assert record.tokens == []
            continue
        explained = record.request.mode is not Mode.PLAIN
        assert len(record.tokens) == record.request.answer_tokens
        assert len(record.vectors) == (record.request.answer_tokens if explained else 0)
        assert record.tokens == sorted(record.tokens)
        assert all(vector > token for token, vector in zip(record.tokens, record.vectors, strict=False))
        assert record.tokens[0] > record.request.arrival
        assert record.ended is not None
        assert record.ended >= max(record.tokens[-1:] + record.vectors[-1:])
    end = max(record.ended or 0.0 for record in served)
    assert replica.busy_seconds <= end + 1e-9
    assert replica.busy_between(0.0, end) == pytest.approx(replica.busy_seconds)


def test_summaries_count_requests_and_tokens() -> None:
    served = [
        RequestRecord(request(Mode.PLAIN), tokens=[1.0, 1.1, 1.3], ended=1.3),
        RequestRecord(request(Mode.PER_TOKEN, arrival=0.5), tokens=[1.0], vectors=[1.2], ended=1.2),
        RequestRecord(request(Mode.PLAIN, arrival=0.6), refused=True, ended=0.6),
    ]
    record = Summary.of(served, start=0.0, end=2.0, busy_seconds=1.0)
    assert (record.requests, record.busy) == (3, 0.5)
    assert record.refused == pytest.approx(1 / 3)
    assert record.first_token[0] == pytest.approx(0.75)
    assert record.gap[0] == pytest.approx(0.15)
    assert record.lag[0] == pytest.approx(0.2)
    assert record.tokens_per_second == pytest.approx(2.0)
    assert record.vectors_per_second == pytest.approx(0.5)
    assert record.running == pytest.approx((0.3 + 0.2) / 2)


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
