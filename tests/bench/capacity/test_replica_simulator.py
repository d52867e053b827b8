"""The simulated scheduler: its passes and times on a cost model with round figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.capacity.conftest import COSTS, READ, REPLAY, SCORES, STEP, request
from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.request_metrics import RequestRecord
from gradellm_bench.capacity.traffic import Mode, SimulatedRequest
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE

ROOMY = ReplicaSettings(max_running=8, kv_tokens=10_000)


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


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.PER_TOKEN])
def test_prompts_fit_the_gap_between_tokens(mode: Mode) -> None:
    """A running stream waits no longer for a token, however long the prompt is."""
    limits = replace(ROOMY, max_gap=0.1)
    running, _ = run(request(mode, answer=200), request(Mode.PLAIN, arrival=0.3, prompt=1000), limits=limits)
    gaps = [after - before for before, after in zip(running.tokens, running.tokens[1:], strict=False)]
    assert 0.05 < max(gaps) <= 0.1


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
