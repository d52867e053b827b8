"""The same requests on the real scheduler, for what a simulation of it says to be compared with what it does."""

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
from gradellm_engine.params import AttributionSettings, Delivery, Sampling
from gradellm_engine.tokenization.prompts import PromptInput

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
        traffic: what comes.
        settings: of the server.
        count: requests.
        seed: of their lengths and moments.
    """

    what: str
    traffic: Traffic
    settings: ReplicaSettings
    count: int
    seed: int

    @property
    def requests(self) -> list[SimulatedRequest]:
        """Each holds places for exactly its answer, whose length it says: the model ends none."""
        drawn = self.traffic.requests(self.count, self.seed)
        return [replace(its, places=its.prompt_tokens + its.answer_tokens) for its in drawn]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> ValidationRun:
        """Of what was written of one."""
        traffic, settings = Traffic(**told["traffic"]), ReplicaSettings(**told["settings"])
        return cls(told["what"], traffic, settings, told["count"], told["seed"])


def simulated(replica: Replica, its: ValidationRun) -> Summary:
    """What the simulation says of a trial."""
    served = replica.run(its.requests)
    return Summary.of(served, start=0.0, end=_end(served), busy_seconds=replica.busy_seconds)


def real(bench_model: BenchModel, engine: Engine, its: ValidationRun) -> Summary:
    """What comes of it on this machine."""
    served, busy = run(bench_model, engine, its.requests, max_queued=its.settings.max_queued)
    return Summary.of(served, start=0.0, end=_end(served), busy_seconds=busy)


def _end(served: Sequence[RequestRecord]) -> float:
    return max(its.ended or 0.0 for its in served)


def run(
    bench_model: BenchModel, engine: Engine, requests: Sequence[SimulatedRequest], *, max_queued: int
) -> tuple[list[RequestRecord], float]:
    """Run them on this machine, each at its time; what became of each, and seconds spent in passes.

    Answers have exactly the lengths that requests say: the model ends none. Evaluations are not run.
    """
    rng = Random(0)  # noqa: S311 (prompts are no secrets)
    prompts = [bench_model.prompt(rng, request.prompt_tokens) for request in requests]
    served = [RequestRecord(request) for request in requests]
    scheduler, placed = engine.scheduler, dict[int, Request]()
    coming, busy = 0, 0.0
    watch = Stopwatch()

    def take_in() -> None:
        nonlocal coming
        while coming < len(requests) and requests[coming].arrival <= watch():
            its = served[coming]
            if len(placed) >= scheduler.max_running + max_queued:
                its.refused = True
            else:
                placed[coming] = engine.generation_request(
                    PromptInput(prompt_ids=prompts[coming]),
                    Sampling(max_new_tokens=its.request.answer_tokens),
                    ATTRIBUTION[its.request.mode],
                )
                scheduler.submit(placed[coming])
            coming += 1

    def note() -> None:
        now = watch()
        for index, stream in list(placed.items()):
            if stream.error is not None:
                raise stream.error
            for event in stream.take_events():
                if isinstance(event, Step):
                    served[index].tokens.append(now)
                elif isinstance(event, Attribution):
                    served[index].vectors.append(now)
            if stream.is_closed:
                served[index].ended = now
                del placed[index]

    while coming < len(requests) or placed:
        take_in()
        if not scheduler.has_work():
            time.sleep(IDLE_SECONDS)
            continue
        began = watch()
        for _ in scheduler.step():
            note()
            take_in()
        note()
        busy += watch() - began
    return served, busy
