"""Streams run by a scheduler to their end, and what they told on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gradellm_engine import Attribution, Engine, Event, Finished, Request, Step
from gradellm_engine.core.scheduler import Scheduler


@dataclass
class Told:
    """Everything that a stream told, in order, and the error that ended it."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def ids(self) -> list[int]:
        return [step.id for step in self.steps]

    @property
    def attributions(self) -> dict[int, Attribution]:
        return {event.token_index: event for event in self.events if isinstance(event, Attribution)}

    @property
    def rows(self) -> list[Tensor]:
        return [attribution.scores for attribution in self.attributions.values()]

    @property
    def finished(self) -> Finished | None:
        return next((event for event in self.events if isinstance(event, Finished)), None)


def scheduler_of(engine: Engine, *, max_running: int, num_tokens: int) -> Scheduler:
    """Another scheduler of a loaded model, with memory that holds nothing yet."""
    engine.model.runner.allocate_pool(num_tokens)
    return Scheduler(engine.model.runner, max_running=max_running)


def finish(scheduler: Scheduler, streams: Sequence[Request], told: Sequence[Told] | None = None) -> list[Told]:
    """Run streams that were submitted to their end; `told` goes on with what they told before."""
    told = list(told) if told is not None else [Told() for _ in streams]
    for _ in range(10_000):
        if all(stream.is_closed for stream in streams):
            break
        for _ in scheduler.step():
            take(streams, told)
    take(streams, told)  # of those that were over before they ran
    assert all(stream.is_closed for stream in streams)
    return told


def take(streams: Sequence[Request], told: Sequence[Told]) -> None:
    """Add what streams have to tell now."""
    for stream, its in zip(streams, told, strict=True):
        its.events += stream.take_events()
        its.error = stream.error


def run(scheduler: Scheduler, streams: Sequence[Request]) -> list[Told]:
    """Run streams together, from their submission to their end."""
    for stream in streams:
        scheduler.submit(stream)
    return finish(scheduler, streams)


def run_alone(engine: Engine, stream: Request) -> Told:
    """Run a stream on its own: one pass a token, nothing reused."""
    (told,) = run(scheduler_of(engine, max_running=1, num_tokens=stream.max_num_tokens), [stream])
    return told
