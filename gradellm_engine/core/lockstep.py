"""Replicated scheduling: the ranks of a tensor-parallel model run the same requests through the same scheduler.

A sharded model computes only where all ranks run the same forward and backward passes in the same order. So each rank
runs the whole engine, rather than mirroring single passes. Rank 0 broadcasts what a rank cannot know by itself:

    1. submitted and cancelled requests, tokens of followed ones, and when waiting
       requests are admitted                                                          (`CallCommand`, in order)
    2. at the start of a step, which requests are held back, and the pass timings    (`StepCommand`)
    3. between a step's passes, the calls since the last broadcast                   (`CallCommand` again)

All else follows. Logits are an all-reduced sum, with the same bits on each rank; a draw is a function of logits, seed
and step; an attribution is a sum over ranks, too. So all ranks choose the same tokens, and raise the same errors.

An error on one rank alone (out of memory, a program error, a lost connection) leaves the other ranks waiting in an
all-reduce. `GroupLostError` then ends every rank, and the group has to be started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary
from zlib import crc32

from gradellm_engine.core.following.agreement import GivenLogprobs
from gradellm_engine.core.following.request import FollowedRequest
from gradellm_engine.core.request import Request
from gradellm_engine.core.request_spec import RequestCall
from gradellm_engine.core.scheduler import DEFAULT_MAX_FOLLOWED, EligibilityFn, Scheduler
from gradellm_engine.core.scheduling.pass_timings import DEFAULT_MAX_GAP_SECONDS, PassTimings
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import EngineError, GroupLostError, OutOfMemoryError
from gradellm_engine.model.runner import ModelRunner


@dataclass(frozen=True)
class Submit:
    """A request is queued; later commands name it by `request_id`."""

    request_id: int
    call: RequestCall


@dataclass(frozen=True)
class Cancel:
    """A request is ended as it is."""

    request_id: int


@dataclass(frozen=True)
class Admit:
    """Waiting requests are admitted, as far as there are KV slots."""


@dataclass(frozen=True)
class Append:
    """Tokens come to a followed request; the other ranks compare no log-probabilities."""

    request_id: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Flush:
    """What has come of a followed request is explained."""

    request_id: int


@dataclass(frozen=True)
class Finish:
    """No more tokens come to a followed request."""

    request_id: int


CallCommand = Submit | Cancel | Admit | Append | Flush | Finish


@dataclass(frozen=True)
class StepCommand:
    """A scheduler step begins.

    Attributes:
        timings: rank 0's pass timings.
        held: ids of requests that do not take part.
    """

    timings: PassTimings
    held: frozenset[int]


@dataclass(frozen=True)
class Command:
    """One broadcast of rank 0.

    Attributes:
        calls: what has happened since the last command.
        step: the step that begins; None between the passes of a step.
        is_last: whether followers are to stop.
        digest: of the state of all open requests, once `calls` are applied; see `digest`.
    """

    calls: tuple[CallCommand, ...] = ()
    step: StepCommand | None = None
    is_last: bool = False
    digest: int = 0


class RankZeroScheduler(Scheduler):
    """The scheduler of rank 0, which broadcasts its decisions to the followers."""

    needs_heartbeat = True  # a lost rank is noticed, and followers know that rank 0 is alive

    def __init__(
        self,
        runner: ModelRunner,
        ranks: ProcessGroup,
        *,
        max_running: int,
        max_followed: int = DEFAULT_MAX_FOLLOWED,
        max_gap: float = DEFAULT_MAX_GAP_SECONDS,
    ) -> None:
        super().__init__(runner, max_running=max_running, max_followed=max_followed, max_gap=max_gap)
        self._ranks = ranks
        self._calls: list[CallCommand] = []  # not broadcast yet
        self._ids: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._last_id = 0
        self._in_step = False  # a step has begun and not ended

    def submit(self, request: Request) -> None:
        """See `Scheduler`."""
        if not request.is_closed:
            if request.call is None:
                raise ValueError("a request that RequestBuilder did not build cannot run on several ranks")
            self._last_id += 1
            self._ids[request] = self._last_id
            self._calls.append(Submit(self._last_id, request.call))
        super().submit(request)

    def cancel(self, request: Request) -> None:
        """See `Scheduler`."""
        if (request_id := self._ids.pop(request, None)) is not None:
            self._calls.append(Cancel(request_id))
        super().cancel(request)

    def append(self, request: FollowedRequest, ids: Sequence[int], logprobs: Sequence[GivenLogprobs] = ()) -> None:
        """See `Scheduler`."""
        super().append(request, ids, logprobs)
        self._calls.append(Append(self._ids[request], tuple(ids)))

    def flush(self, request: FollowedRequest) -> None:
        """See `Scheduler`."""
        super().flush(request)
        self._calls.append(Flush(self._ids[request]))

    def finish(self, request: FollowedRequest) -> None:
        """See `Scheduler`."""
        super().finish(request)
        self._calls.append(Finish(self._ids[request]))

    def has_work(self, is_eligible: EligibilityFn = lambda request: True) -> bool:
        """See `Scheduler`."""
        if self._may_admit and self._calls[-1:] != [Admit()]:
            self._calls.append(Admit())  # this call admits them, before the next step does
        return super().has_work(is_eligible)

    def step(self, is_eligible: EligibilityFn = lambda request: True) -> Iterator[None]:
        """See `Scheduler`.

        Raises:
            GroupLostError: where the ranks are no longer in lockstep.
        """
        if self._in_step:
            raise GroupLostError("a scheduler step was abandoned between two passes; the other ranks still wait in it")
        self._in_step = True
        try:
            held = frozenset(request_id for request, request_id in self._ids.items() if not is_eligible(request))
            self._broadcast(StepCommand(self.timings, held))
            for _ in super().step(lambda request: self._ids.get(request) not in held):
                check_in_step(self._ids)
                yield
                self._broadcast(None)
        except GroupLostError:
            raise
        except Exception as error:
            raise GroupLostError(f"rank 0 failed where the other ranks may not have: {error}") from error
        check_in_step(self._ids)
        self._in_step = False

    def stop_followers(self) -> None:
        """Have the followers leave their loops.

        Raises:
            GroupLostError: where a rank is lost already.
        """
        self._ranks.broadcast(Command(is_last=True))

    def _broadcast(self, step: StepCommand | None) -> None:
        calls, self._calls = tuple(self._calls), []
        requests = {request_id: request for request, request_id in self._ids.items()}
        self._ranks.broadcast(Command(calls, step, digest=digest(requests)))


@dataclass
class FollowerLoop:
    """The loop of every rank but 0, which carries out rank 0's commands.

    Attributes:
        scheduler: this rank's.
        rebuild: builds the request of a call.
        ranks: the process group.
        requests: those that wait or run, by id.
    """

    scheduler: Scheduler
    rebuild: Callable[[RequestCall], Request]
    ranks: ProcessGroup
    requests: dict[int, Request] = field(default_factory=dict)

    def run(self) -> None:
        """Run until rank 0 stops it.

        Raises:
            GroupLostError: where the ranks are no longer in lockstep.
        """
        while not (command := self._next_command()).is_last:
            if command.step is None:
                raise GroupLostError("rank 0 is between two passes of a step that has not begun on this rank")
            self._step(command.step)

    def _next_command(self) -> Command:
        """Rank 0's next command, with its calls applied."""
        command: Command = self.ranks.recv()
        for call in command.calls:
            self._apply(call)
        if not command.is_last and command.digest != digest(self.requests):
            raise GroupLostError("requests differ between this rank and rank 0: other tokens, or other ends")
        return command

    def _apply(self, command: CallCommand) -> None:
        match command:
            case Submit(request_id, call):
                self.requests[request_id] = self.rebuild(call)
                self.scheduler.submit(self.requests[request_id])
            case Cancel(request_id):
                if (request := self.requests.pop(request_id, None)) is not None:
                    self.scheduler.cancel(request)
            case Admit():
                self.scheduler.admit()
            case Append(request_id, ids):
                self.scheduler.append(self._followed(request_id), ids)
            case Flush(request_id):
                self.scheduler.flush(self._followed(request_id))
            case Finish(request_id):
                self.scheduler.finish(self._followed(request_id))

    def _followed(self, request_id: int) -> FollowedRequest:
        request = self.requests[request_id]
        if not isinstance(request, FollowedRequest):
            raise GroupLostError(f"rank 0 has tokens for request {request_id}, which is not followed on this rank")
        return request

    def _step(self, step: StepCommand) -> None:
        self.scheduler.timings = step.timings
        held = {id(self.requests[request_id]) for request_id in step.held if request_id in self.requests}
        for _ in self.scheduler.step(lambda request: id(request) not in held):
            check_in_step(self.requests.values())
            self._drop_events()
            command = self._next_command()
            if command.step is not None or command.is_last:
                raise GroupLostError("rank 0 has abandoned a step between two passes")
        check_in_step(self.requests.values())
        self._drop_events()

    def _drop_events(self) -> None:
        """Discard events, which only rank 0 delivers, and requests that have ended."""
        for request in self.requests.values():
            request.take_events()
        self.requests = {key: request for key, request in self.requests.items() if not request.is_closed}


def digest(requests: Mapping[int, Request]) -> int:
    """A checksum of the open requests' states: id, number of tokens and last token of each."""
    states = sorted(
        (request_id, len(request.ids), request.ids[-1])
        for request_id, request in requests.items()
        if not request.is_closed
    )
    return crc32(repr(states).encode())


def check_in_step(requests: Iterable[Request]) -> None:
    """Check that no request failed with an error that other ranks may not have.

    Raises:
        GroupLostError: with the error.
    """
    for request in requests:
        error = request.error
        if error is not None and (not isinstance(error, EngineError) or isinstance(error, OutOfMemoryError)):
            raise GroupLostError(
                f"a pass failed on this rank and may not have failed on other ranks: {error}"
            ) from error
