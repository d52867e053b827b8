"""Errors of a pass: whose request they end, and how many requests the next passes take after memory ran out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gradellm_engine.core.request import Request
from gradellm_engine.errors import EngineError, OutOfMemoryError
from gradellm_engine.utils.memory import free_caches, is_out_of_memory

PASSES_BEFORE_GROWTH = 256  # that fit, before the batch limit is doubled after an out-of-memory error

logger = logging.getLogger(__name__)


class BatchLimit:
    """How many requests fit a pass, learnt from passes that ran out of memory.

    Attributes:
        max_requests: of a pass; None while memory has not run out.
    """

    def __init__(self, *, retries: bool) -> None:
        """`retries`: whether requests of a pass that ran out of memory are retried in smaller ones."""
        self._retries = retries
        self.max_requests: int | None = None
        self._num_fitting = 0  # passes since memory ran out, or since `max_requests` was last raised

    def fits(self, requests: Sequence[Request]) -> bool:
        """Whether a pass takes all of the requests."""
        return self.max_requests is None or len(requests) <= self.max_requests

    @contextmanager
    def guard(self, requests: Sequence[Request], max_running: int) -> Iterator[None]:
        """The context of one pass: an exception in it fails the requests of the pass only.

        An out-of-memory error in a pass of several requests fails none: they are retried in smaller batches. A request
        fails only if it does not fit by itself. A limit of `max_running` or more is none.
        """
        before = [(request, request.num_tokens, request.num_computed_tokens) for request in requests]
        try:
            with fail_on_error(requests):
                try:
                    yield
                    self._grow(len(requests), max_running)
                except Exception as error:
                    if not (self._retries and is_out_of_memory(error)):
                        raise
                    if len(requests) == 1:
                        raise OutOfMemoryError from None
                    self.max_requests, self._num_fitting = max(1, len(requests) // 2), 0
                    logger.warning(
                        "Out of memory in a pass of %d requests; retrying with at most %d a pass",
                        len(requests),
                        self.max_requests,
                    )
                    error.with_traceback(None)
                    for request, num_tokens, num_computed_tokens in before:
                        request.roll_back(num_tokens, num_computed_tokens)
                    free_caches()
        finally:
            if any(isinstance(request.error, OutOfMemoryError) for request in requests):
                free_caches()

    def _grow(self, count: int, max_running: int) -> None:
        """After a pass that fitted: raise the limit again once PASSES_BEFORE_GROWTH passes have fitted."""
        if self.max_requests is not None and count >= self.max_requests:
            self._num_fitting += 1
            if self._num_fitting >= PASSES_BEFORE_GROWTH:
                self.max_requests, self._num_fitting = 2 * self.max_requests, 0
                if self.max_requests >= max_running:
                    self.max_requests = None


@contextmanager
def fail_on_error(requests: Sequence[Request]) -> Iterator[None]:
    """An exception fails the given requests, and is not raised."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, EngineError):
            logger.exception("A pass failed; failing its %d requests", len(requests))
        error.with_traceback(None)  # its frames hold the pass's graph
        for request in requests:
            request.fail(error)
