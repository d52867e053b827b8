"""A request to an engine that is used alone: iterate it for its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gradellm_engine.core.outputs import Attribution, Event, Finished, Started, Step
from gradellm_engine.core.request import Request, RequestPhase
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.errors import BusyError
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary


class GenerationIterator:
    """Yields the steps of one request, each with its attribution where one was asked for.

    It runs while it is iterated. Leaving it early costs nothing: what it holds is freed with it, or by `close`.

    Attributes:
        started: how the request was understood.
        finished: what it came to; None before its end.
    """

    def __init__(self, scheduler: Scheduler, stream: Request) -> None:
        self._scheduler, self._stream = scheduler, stream
        events = stream.take_events()
        self.started: Started = next(event for event in events if isinstance(event, Started))
        self.finished: Finished | None = None
        self._unexplained: list[Step] = []
        self._results: list[EvaluationItem | EvaluationSummary] = []
        self._take(events)
        scheduler.submit(stream)

    def __iter__(self) -> Iterator[Step]:
        while not self._stream.is_closed:
            yield from self.advance()

    def evaluation(self) -> Iterator[EvaluationItem | EvaluationSummary]:
        """Run an evaluation to its end; what it tells, as it comes."""
        while not self._stream.is_closed:
            self.advance()
            results, self._results = self._results, []
            yield from results

    def advance(self) -> list[Step]:
        """Do one pass through the model, or a few; the steps that can be told now, perhaps none.

        Raises:
            ComputationError: where the model's numbers are not finite. The generation is over then.
            BusyError: where other generations hold the memory that this one needs.
        """
        if self._stream.is_closed:
            return []
        for _ in self._scheduler.step(lambda stream: stream is self._stream):
            pass
        if self._stream.error is not None:
            raise self._stream.error
        if self._stream.phase is RequestPhase.WAITING:
            raise BusyError("other generations hold the engine's places or memory; end or close one first")
        return self._take(self._stream.take_events())

    def close(self) -> None:
        """End it and free what it holds."""
        self._scheduler.cancel(self._stream)

    def __del__(self) -> None:
        self.close()

    def _take(self, events: list[Event]) -> list[Step]:
        """Steps in order, with delivery chunked each as late as its scores."""
        whole: list[Step] = []
        for event in events:
            match event:
                case Step():
                    self._unexplained.append(event)
                case Attribution():
                    whole.append(replace(self._unexplained.pop(0), attribution=event))
                case EvaluationItem() | EvaluationSummary():
                    self._results.append(event)
                case Finished():
                    self.finished = event
        if self.started.attribution is None:
            whole, self._unexplained = self._unexplained, []
        return whole
