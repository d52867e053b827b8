"""Faults on purpose: points of the server that tests can make fail. For tests only.

A test in the same process arms a point and disarms it:

    with faults.armed("pass", faults.failing(MemoryError()), times=1): ...

A server process is armed by its environment, and refuses to start with it unless it is told --allow-faults:

    GRADELLM_FAULTS="engine=kill@200,tokenizer=stall:0.5"      point=action[:seconds][@n], from its n-th time on, once

| point | when it is met | actions that make sense |
| --- | --- | --- |
| `engine` | on the engine thread, before each tick of the scheduler | `kill` the thread; `stall` it for seconds |
| `pass` | before each pass of the model, with its streams | `fail` as a bug would; `out_of_memory`; `stall` |
| `tokenizer` | before a request is read | `stall`; `fail`; `out_of_memory` |
| `client` | before an answer is sent, with the job | `drop` the client, as a broken connection would |

Nothing is armed but by tests: a point then costs one look at an empty dictionary.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

VARIABLE = "GRADELLM_FAULTS"
POINTS = ("engine", "pass", "tokenizer", "client")

Action = Callable[[object], None]  # what happens; it is given what the point is about


class FaultError(Exception):
    """What a `fail`ing point raises, and what a wrong description of faults is refused with."""


class KilledError(BaseException):
    """What `kill` raises: no handler of exceptions catches it."""


@dataclass
class Fault:
    """An armed point.

    Attributes:
        action: what happens.
        times: how often; None for always.
        skip: how often the point is passed before.
        when: which subjects it is for.
    """

    action: Action
    times: int | None = None
    skip: int = 0
    when: Callable[[object], bool] = lambda subject: True
    num_hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hit(self, subject: object) -> None:
        """The point is met."""
        with self._lock:
            if not self.when(subject):
                return
            self.num_hits += 1
            nth = self.num_hits - self.skip
            if nth < 1 or (self.times is not None and nth > self.times):
                return
        self.action(subject)


ARMED: dict[str, Fault] = {}


def hit(point: str, subject: object = None) -> None:
    """Meet a point. Callers look first whether anything is armed."""
    if (fault := ARMED.get(point)) is not None:
        fault.hit(subject)


@contextmanager
def armed(
    point: str,
    action: Action,
    *,
    times: int | None = None,
    skip: int = 0,
    when: Callable[[object], bool] = lambda subject: True,
) -> Iterator[Fault]:
    """Have a point fail for as long as the context lasts; the fault, which counts how often it was met."""
    if point not in POINTS:
        raise FaultError(f"{point!r} is no fault point; they are {', '.join(POINTS)}")
    fault = ARMED[point] = Fault(action, times, skip, when)
    try:
        yield fault
    finally:
        if ARMED.get(point) is fault:
            del ARMED[point]


def failing(error: BaseException) -> Action:
    """An action that raises an error."""

    def fail(subject: object) -> None:
        raise error

    return fail


def stalling(seconds: float) -> Action:
    """An action that takes so long."""
    return lambda subject: time.sleep(seconds)


def kill(subject: object) -> None:
    """An action that ends the thread that it happens on."""
    raise KilledError


def drop(subject: object) -> None:
    """An action that ends a job as the loss of its client would."""
    drop_client: Callable[[], object] = getattr(subject, "drop_client")  # noqa: B009 (the point says what it is about)
    drop_client()


def parse(text: str) -> dict[str, Fault]:
    """Faults from their description; see the module.

    Raises:
        FaultError: naming the part that is wrong.
    """
    found: dict[str, Fault] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\w+)=(\w+)(?::([\d.]+))?(?:@(\d+))?", part)
        if match is None or match[1] not in POINTS:
            raise FaultError(f"{VARIABLE}: {part!r} is not POINT=ACTION[:SECONDS][@N]; points are {', '.join(POINTS)}")
        seconds = float(match[3] or 1)
        actions: dict[str, Action] = {
            "kill": kill,
            "stall": stalling(seconds),
            "fail": failing(FaultError("a fault that a test asked for")),
            "out_of_memory": failing(MemoryError()),
            "drop": drop,
        }
        if match[2] not in actions:
            raise FaultError(f"{VARIABLE}: {match[2]!r} is no action; actions are {', '.join(actions)}")
        found[match[1]] = Fault(actions[match[2]], times=1, skip=int(match[4] or 1) - 1)
    return found


def arm_from(text: str | None, *, allowed: bool) -> None:
    """Arm what the environment says.

    Raises:
        FaultError: where it says something and the operator does not allow it, or it is wrong.
    """
    if not text:
        return
    if not allowed:
        raise FaultError(f"{VARIABLE} is set, which makes the server fail on purpose; unset it, or say --allow-faults")
    ARMED.update(parse(text))
