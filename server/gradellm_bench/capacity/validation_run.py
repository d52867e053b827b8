"""Runs the same requests on the real scheduler and in the simulation, to validate the simulation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.request_metrics import RequestRecord, Summary
from gradellm_bench.capacity.traffic import Mode, SimulatedRequest, Traffic
from gradellm_bench.models import BenchModel
from gradellm_bench.timeline import Stopwatch
from gradellm_engine.core.outputs import Attribution, Step
from gradellm_engine.core.request import Request
from gradellm_engine.engine import Engine
from gradellm_engine.params import AttributionSettings, Delivery
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt_input import PromptInput

ATTRIBUTION = {
    Mode.PLAIN: None,
    Mode.PER_TOKEN: AttributionSettings(),
    Mode.CHUNKED: AttributionSettings(delivery=Delivery.CHUNKED),
}
IDLE_SECONDS = 0.0005


@dataclass(frozen=True)
class ValidationRun:
    """A run.

    Attributes:
        what: its name.
        traffic: distribution of the requests.
        settings: the server's limits.
        count: number of requests.
        seed: of lengths and arrival times.
    """

    what: str
    traffic: Traffic
    settings: ReplicaSettings
    count: int
    seed: int

    @property
    def requests(self) -> list[SimulatedRequest]:
        """The requests; each reserves slots for exactly its answer, since the model never ends one early."""
        drawn = self.traffic.requests(self.count, self.seed)
        return [replace(each, slots=each.prompt_tokens + each.answer_tokens) for each in drawn]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ValidationRun:
        """A run from its JSON record."""
        traffic, settings = Traffic(**record["traffic"]), ReplicaSettings(**record["settings"])
        return cls(record["what"], traffic, settings, record["count"], record["seed"])


def simulated(replica: Replica, validation: ValidationRun) -> Summary:
    """The simulation's summary of a run."""
    served = replica.run(validation.requests)
    return Summary.of(served, start=0.0, end=_end(served), busy_seconds=replica.busy_seconds)


def real(bench_model: BenchModel, engine: Engine, validation: ValidationRun) -> Summary:
    """The real scheduler's summary of a run on this machine."""
    served, busy = run(bench_model, engine, validation.requests, max_queued=validation.settings.max_queued)
    return Summary.of(served, start=0.0, end=_end(served), busy_seconds=busy)


def _end(served: Sequence[RequestRecord]) -> float:
    return max(record.ended or 0.0 for record in served)


def run(
    bench_model: BenchModel, engine: Engine, requests: Sequence[SimulatedRequest], *, max_queued: int
) -> tuple[list[RequestRecord], float]:
    """Run requests on this machine at their arrival times; their records, and the seconds spent in passes.

    Answers have exactly the requested lengths. Evaluations are not supported.
    """
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    prompts = [bench_model.prompt(rng, request.prompt_tokens) for request in requests]
    served = [RequestRecord(request) for request in requests]
    scheduler, running = engine.scheduler, dict[int, Request]()
    arrived, busy = 0, 0.0
    watch = Stopwatch()

    def accept_arrivals() -> None:
        nonlocal arrived
        while arrived < len(requests) and requests[arrived].arrival <= watch():
            record = served[arrived]
            if len(running) >= scheduler.max_running + max_queued:
                record.refused = True
            else:
                running[arrived] = engine.generation_request(
                    PromptInput(prompt_ids=prompts[arrived]),
                    Sampling(max_new_tokens=record.request.answer_tokens),
                    ATTRIBUTION[record.request.mode],
                )
                scheduler.submit(running[arrived])
            arrived += 1

    def record_events() -> None:
        now = watch()
        for index, request in list(running.items()):
            if request.error is not None:
                raise request.error
            for event in request.take_events():
                if isinstance(event, Step):
                    served[index].tokens.append(now)
                elif isinstance(event, Attribution):
                    served[index].vectors.append(now)
            if request.is_closed:
                served[index].ended = now
                del running[index]

    while arrived < len(requests) or running:
        accept_arrivals()
        if not scheduler.has_work():
            time.sleep(IDLE_SECONDS)
            continue
        start = watch()
        for _ in scheduler.step():
            record_events()
            accept_arrivals()
        record_events()
        busy += watch() - start
    return served, busy
