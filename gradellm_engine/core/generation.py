"""Iterates one request of an engine that is used without a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gradellm_engine.core.outputs import Attribution, Event, Finished, Started, Step
from gradellm_engine.core.request import Request, RequestPhase
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.errors import BusyError
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary


class GenerationIterator:
    """Yields the steps of one request, each with its attribution where the request has one.

    Passes run only while it is iterated. `close`, or dropping the last reference, frees its KV slot.

    Attributes:
        started: the request as the engine resolved it.
        finished: the result; None until the end.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self._request = scheduler, request
        events = request.take_events()
        self.started: Started = next(event for event in events if isinstance(event, Started))
        self.finished: Finished | None = None
        self._steps: list[Step] = []  # that are incomplete, or behind one that is
        self._attributions: dict[int, Attribution] = {}
        self._results: list[EvaluationItem | EvaluationSummary] = []
        self._take(events)
        scheduler.submit(request)

    def __iter__(self) -> Iterator[Step]:
        while not self._request.is_closed:
            yield from self.advance()

    def evaluation(self) -> Iterator[EvaluationItem | EvaluationSummary]:
        """Run an evaluation to its end; yields results as they come."""
        while not self._request.is_closed:
            self.advance()
            results, self._results = self._results, []
            yield from results

    def advance(self) -> list[Step]:
        """Run one scheduler step; returns the completion's steps that are complete now, perhaps none.

        Raises:
            ComputationError: where the model's numbers are not finite. The request has ended then.
            BusyError: where other requests hold the KV memory that this one needs.
        """
        if self._request.is_closed:
            return []
        for _ in self._scheduler.step(lambda request: request is self._request):
            pass
        if self._request.error is not None:
            raise self._request.error
        if self._request.phase is RequestPhase.WAITING:
            raise BusyError(
                "no KV slot is free: other generations hold max_running slots or the memory; finish or close one"
            )
        return self._take(self._request.take_events())

    def close(self) -> None:
        """End the request and free its KV slot."""
        self._scheduler.cancel(self._request)

    def __del__(self) -> None:
        self.close()

    def _take(self, events: list[Event]) -> list[Step]:
        """Steps in order, each joined with its attribution if it is explained."""
        for event in events:
            match event:
                case Step():
                    self._steps.append(event)
                case Attribution():
                    self._attributions[event.token_index] = event
                case EvaluationItem() | EvaluationSummary():
                    self._results.append(event)
                case Finished():
                    self.finished = event
        settings, complete = self.started.attribution, []
        while self._steps:
            index = self._steps[0].index
            if settings is not None and settings.explains(index) and index not in self._attributions:
                break
            complete.append(replace(self._steps.pop(0), attribution=self._attributions.pop(index, None)))
        return complete
