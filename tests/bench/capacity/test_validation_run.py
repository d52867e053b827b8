"""The same requests on the real scheduler and in the simulation."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.capacity.conftest import COSTS, request
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.traffic import Mode, Traffic
from gradellm_bench.capacity.validation_run import ValidationRun, real, run, simulated
from gradellm_bench.models import BenchModel

RUN = ValidationRun(
    "a run",
    Traffic(1000.0, prompt_tokens=12, answer_tokens=6, max_new_tokens=32, context_tokens=64, explained=0.7),
    ReplicaSettings(max_running=2, kv_tokens=400, max_queued=64),
    count=8,
    seed=3,
)


def test_a_run_is_restored_from_its_record() -> None:
    assert ValidationRun.of(json.loads(json.dumps(asdict(RUN)))) == RUN


def test_requests_reserve_exactly_their_answers() -> None:
    drawn = RUN.traffic.requests(RUN.count, RUN.seed)
    assert [each.slots for each in RUN.requests] == [each.prompt_tokens + each.answer_tokens for each in drawn]
    assert [each.arrival for each in RUN.requests] == [each.arrival for each in drawn]


def test_the_real_scheduler_serves_what_the_simulation_serves(tiny: BenchModel) -> None:
    engine = tiny.engine(max_running=RUN.settings.max_running, num_tokens=RUN.settings.kv_tokens)
    served, busy = run(tiny, engine, RUN.requests, max_queued=RUN.settings.max_queued)
    replica = Replica(COSTS, RUN.settings)
    for record, predicted in zip(served, replica.run(RUN.requests), strict=True):
        assert record.request == predicted.request
        assert (record.refused, predicted.refused) == (False, False)
        assert len(record.tokens) == len(predicted.tokens) == record.request.answer_tokens
        assert len(record.vectors) == len(predicted.vectors)
        assert record.tokens == sorted(record.tokens)
        assert record.ended is not None
        assert record.request.arrival < record.tokens[0] <= record.tokens[-1] <= record.ended
    assert 0 < busy <= max(record.ended or 0.0 for record in served)


def test_summaries_span_the_whole_run(tiny: BenchModel) -> None:
    replica = Replica(COSTS, RUN.settings)
    found = simulated(replica, RUN)
    end = max(record.ended or 0.0 for record in replica.served)
    tokens = [moment for record in replica.served for moment in record.tokens]
    assert found.busy == pytest.approx(replica.busy_seconds / end)
    assert found.tokens_per_second == pytest.approx(sum(moment < end for moment in tokens) / end)
    measured = real(tiny, tiny.engine(max_running=2, num_tokens=RUN.settings.kv_tokens), RUN)
    assert (measured.requests, measured.refused) == (found.requests, found.refused) == (RUN.count, 0.0)
    assert 0 < measured.busy <= 1
    assert 0 < measured.running <= 2


def test_requests_beyond_the_queue_are_refused(tiny: BenchModel) -> None:
    engine = tiny.engine(max_running=1, num_tokens=400)
    served, _ = run(tiny, engine, [request(Mode.PLAIN) for _ in range(4)], max_queued=1)
    assert [record.refused for record in served] == [False, False, True, True]
    assert [len(record.tokens) for record in served] == [4, 4, 0, 0]
