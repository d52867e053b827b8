"""Ranks that take the same steps.

A model whose weights are shared out runs where all ranks run the same passes, forward and backward, in the same order.
So every rank runs the whole engine, not a mirror of single passes: the same requests, through the same scheduler. What
a rank could not find out by itself, rank 0 decides and tells the others:

    1. who asked for what, who has gone, and when a waiting request may have come in    (acts, in their order)
    2. at the beginning of a tick, who does not get a turn, and how long passes took    (`StepCommand`)
    3. between a tick's passes, what has happened meanwhile                             (acts again)

All else follows. The ranks' logits come out of a sum, the same bits on each; a draw is a function of them, seed and
step; an explanation's map is a sum over ranks, too. So every rank chooses the same token, and finds the same errors.

What only one rank meets, and only there (memory runs out, a program error, a lost connection), would leave the others
in the middle of a sum: the group is then given up as a whole, to be started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary
from zlib import crc32

from gradellm_engine.core.request import Request
from gradellm_engine.core.scheduler import EligibilityFn, PassTimings, Scheduler
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import EngineError, GroupLostError, OutOfMemoryError
from gradellm_engine.model.runner import ModelRunner

if TYPE_CHECKING:
    from gradellm_engine.engine import Engine

MakeStream = TypeVar("MakeStream", bound=Callable[..., Request])


@dataclass(frozen=True)
class RequestCall:
    """How a stream came about, so that another rank can make the same.

    Attributes:
        of: the engine's method.
        arguments: by name, with everything said that a rank would choose by itself.
    """

    of: str
    arguments: Mapping[str, Any]

    def stream(self, engine: Engine) -> Request:
        """The same stream."""
        made: Request = getattr(engine, self.of)(**self.arguments)
        return made


def records_call(method: MakeStream) -> MakeStream:
    """An engine's method whose streams know how they came about."""
    its_signature = signature(method)

    @wraps(method)
    def made(engine: Engine, *args: Any, **kwargs: Any) -> Request:  # noqa: ANN401 (passed on)
        bound = its_signature.bind(engine, *args, **kwargs).arguments
        stream = method(engine, *args, **kwargs)
        arguments = {name: value for name, value in bound.items() if name != "self"}
        arguments["given"] = stream.prompt  # as it was read: no rank need do it again
        for name in ("completion", "forced_ids"):
            if arguments.get(name) is not None:
                arguments[name] = stream.forced_ids
        if "sampling" in its_signature.parameters:
            arguments["sampling"] = stream.sampling  # with its seed
        stream.asked = RequestCall(method.__name__, arguments)
        return stream

    return made  # type: ignore[return-value]


@dataclass(frozen=True)
class Submit:
    """A stream comes in; `number` is what it is called from now on."""

    number: int
    asked: RequestCall


@dataclass(frozen=True)
class Cancel:
    """A stream is ended as it is."""

    number: int


@dataclass(frozen=True)
class Admit:
    """Streams that wait are let in, as far as there is room."""


CallCommand = Submit | Cancel | Admit


@dataclass(frozen=True)
class StepCommand:
    """A tick begins.

    Attributes:
        pace: what passes took.
        held: streams that do not get a turn.
    """

    pace: PassTimings
    held: frozenset[int]


@dataclass(frozen=True)
class Command:
    """What rank 0 says at a time.

    Attributes:
        acts: what has happened since the last time.
        tick: what begins now; None in the middle of one.
        is_last: whether this is the end.
        digest: of what streams have come to, once the acts are done.
    """

    acts: tuple[CallCommand, ...] = ()
    step: StepCommand | None = None
    is_last: bool = False
    digest: int = 0


class RankZeroScheduler(Scheduler):
    """Rank 0's: what happens to it, the others are told."""

    needs_heartbeat = True  # so that a lost rank is noticed, and the others know that rank 0 is there

    def __init__(self, runner: ModelRunner, ranks: ProcessGroup, *, max_running: int) -> None:
        super().__init__(runner, max_running=max_running)
        self._ranks = ranks
        self._acts: list[CallCommand] = []
        self._numbers: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._last_number = 0
        self._in_tick = False  # one has begun, and not come to its end

    def submit(self, stream: Request) -> None:
        """See `Scheduler`."""
        if not stream.is_closed:
            if stream.asked is None:
                raise ValueError("a stream that the engine did not make cannot run on several ranks")
            self._last_number += 1
            self._numbers[stream] = self._last_number
            self._acts.append(Submit(self._last_number, stream.asked))
        super().submit(stream)

    def cancel(self, stream: Request) -> None:
        """See `Scheduler`."""
        if (number := self._numbers.pop(stream, None)) is not None:
            self._acts.append(Cancel(number))
        super().cancel(stream)

    def has_work(self, ready: EligibilityFn = lambda stream: True) -> bool:
        """See `Scheduler`."""
        if self.waiting and len(self.running) < self.max_running and self._acts[-1:] != [Admit()]:
            self._acts.append(Admit())  # as this look lets them in, and not only the next tick
        return super().has_work(ready)

    def step(self, ready: EligibilityFn = lambda stream: True) -> Iterator[None]:
        """See `Scheduler`.

        Raises:
            GroupLostError: where the ranks can no longer be in step.
        """
        if self._in_tick:
            raise GroupLostError("a tick was left in its middle, where the other ranks still are")
        self._in_tick = True
        try:
            held = frozenset(number for stream, number in self._numbers.items() if not ready(stream))
            self._tell(StepCommand(self.timings, held))
            for _ in super().step(lambda stream: self._numbers.get(stream) not in held):
                check_in_step(self._numbers)
                yield
                self._tell(None)
        except GroupLostError:
            raise
        except Exception as error:
            raise GroupLostError(f"rank 0 failed where others may not have: {error}") from error
        check_in_step(self._numbers)
        self._in_tick = False

    def end(self) -> None:
        """Let the others go.

        Raises:
            GroupLostError: where one is gone already.
        """
        self._ranks.broadcast(Command(is_last=True))

    def _tell(self, step: StepCommand | None) -> None:
        acts, self._acts = tuple(self._acts), []
        open_streams = {number: stream for stream, number in self._numbers.items()}
        self._ranks.broadcast(Command(acts, step, digest=digest(open_streams)))


@dataclass
class FollowerLoop:
    """Any other rank: it does as it is told.

    Attributes:
        engine: its own.
        ranks: of which rank 0 leads.
        streams: those that run or wait, by number.
    """

    engine: Engine
    ranks: ProcessGroup
    streams: dict[int, Request] = field(default_factory=dict)

    def follow(self) -> None:
        """Until rank 0 says that it is over.

        Raises:
            GroupLostError: where it cannot be in step any more.
        """
        while not (order := self._heard()).is_last:
            if order.step is None:
                raise GroupLostError("rank 0 is in a tick that did not begin here")
            self._tick(order.step)

    def _heard(self) -> Command:
        """Rank 0's next word, with all done that happened."""
        order: Command = self.ranks.recv()
        for act in order.acts:
            self._do(act)
        if not order.is_last and order.digest != digest(self.streams):
            raise GroupLostError("streams have come to something else here than on rank 0: other tokens, or other ends")
        return order

    def _do(self, act: CallCommand) -> None:
        match act:
            case Submit(number, asked):
                self.streams[number] = asked.stream(self.engine)
                self.engine.scheduler.submit(self.streams[number])
            case Cancel(number):
                if (stream := self.streams.pop(number, None)) is not None:
                    self.engine.scheduler.cancel(stream)
            case Admit():
                self.engine.scheduler.admit()

    def _tick(self, step: StepCommand) -> None:
        scheduler = self.engine.scheduler
        scheduler.timings = step.pace
        held = {id(self.streams[number]) for number in step.held if number in self.streams}
        for _ in scheduler.step(lambda stream: id(stream) not in held):
            check_in_step(self.streams.values())
            self._drop_events()
            order = self._heard()
            if order.step is not None or order.is_last:
                raise GroupLostError("rank 0 has left a tick in its middle")
        check_in_step(self.streams.values())
        self._drop_events()

    def _drop_events(self) -> None:
        """Nobody reads them here. Nor are streams of use that are over."""
        for stream in self.streams.values():
            stream.take_events()
        self.streams = {number: stream for number, stream in self.streams.items() if not stream.is_closed}


def digest(streams: Mapping[int, Request]) -> int:
    """Of what streams that are not over have come to, by their numbers: how many tokens, and the last one."""
    now = sorted((number, len(its.ids), its.ids[-1]) for number, its in streams.items() if not its.is_closed)
    return crc32(repr(now).encode())


def check_in_step(streams: Iterable[Request]) -> None:
    """See that nothing has gone wrong that would not go wrong everywhere.

    Raises:
        GroupLostError: with what it was.
    """
    for stream in streams:
        error = stream.error
        if error is not None and (not isinstance(error, EngineError) or isinstance(error, OutOfMemoryError)):
            raise GroupLostError(f"a pass failed where others may not have failed: {error}") from error
