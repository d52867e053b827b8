"""Fault injection: named points of the server that tests can make fail. For tests only.

A test in the same process arms a point for the duration of a context:

    with fault_injection.armed("pass", fault_injection.failing(MemoryError()), times=1): ...

A server process is armed by an environment variable, and refuses to start with it unless --allow-faults is given:

    GRADELLM_FAULTS="engine=kill@200,tokenizer=stall:0.5"      point=action[:seconds][@n], once, at the n-th hit

| point | when it is hit | useful actions |
| --- | --- | --- |
| `engine` | on the engine thread, before each step of the scheduler | `kill` the thread; `stall` it for seconds |
| `pass` | before each pass of the model, with its requests | `fail` as a bug would; `out_of_memory`; `stall` |
| `tokenizer` | before a request is read, with its job | `stall`; `fail`; `out_of_memory` |
| `client` | before a response is sent, with its queue | `drop` the client, as a broken connection would |

A point that is not armed costs one look at an empty dictionary.
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

Action = Callable[[object], None]  # takes the subject of the point


class FaultError(Exception):
    """Raised by the action `fail`, and for a malformed or forbidden description of faults."""


class KilledError(BaseException):
    """Raised by the action `kill`; not an Exception, so that no handler catches it."""


@dataclass
class Fault:
    """An armed point.

    Attributes:
        action: what to do.
        times: how often; None for every hit.
        skip: number of hits to ignore first.
        when: which subjects count as hits.
        num_hits: hits so far.
    """

    action: Action
    times: int | None = None
    skip: int = 0
    when: Callable[[object], bool] = lambda subject: True
    num_hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hit(self, subject: object) -> None:
        """Count a hit of the point, and run the action if it is due."""
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
    """Hit a point. Callers check `ARMED` first, which is cheaper."""
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
    """Arm a point for the duration of a context; yields the fault, which counts its hits."""
    if point not in POINTS:
        raise FaultError(f"{point!r} is not a fault point; the points are {', '.join(POINTS)}")
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
    """An action that sleeps."""
    return lambda subject: time.sleep(seconds)


def kill(subject: object) -> None:
    """An action that ends the thread on which it runs."""
    raise KilledError


def drop(subject: object) -> None:
    """An action that ends a response queue's reader, as the loss of the client would."""
    drop_client: Callable[[], object] = getattr(subject, "drop_client")  # noqa: B009 (subjects have no common type)
    drop_client()


def parse(text: str) -> dict[str, Fault]:
    """Parse a description of faults; see the module's docstring.

    Raises:
        FaultError: naming the malformed part.
    """
    faults: dict[str, Fault] = {}
    for item in filter(None, (item_text.strip() for item_text in text.split(","))):
        match = re.fullmatch(r"(\w+)=(\w+)(?::([\d.]+))?(?:@(\d+))?", item)
        if match is None or match[1] not in POINTS:
            raise FaultError(
                f"{VARIABLE}: {item!r} is not POINT=ACTION[:SECONDS][@N]; the points are {', '.join(POINTS)}"
            )
        seconds = float(match[3] or 1)
        actions: dict[str, Action] = {
            "kill": kill,
            "stall": stalling(seconds),
            "fail": failing(FaultError("an injected fault")),
            "out_of_memory": failing(MemoryError()),
            "drop": drop,
        }
        if match[2] not in actions:
            raise FaultError(f"{VARIABLE}: {match[2]!r} is not an action; the actions are {', '.join(actions)}")
        faults[match[1]] = Fault(actions[match[2]], times=1, skip=int(match[4] or 1) - 1)
    return faults


def arm_from_environment(text: str | None, *, is_allowed: bool) -> None:
    """Arm the faults in the value of `GRADELLM_FAULTS`.

    Raises:
        FaultError: if there are any and they are not allowed, or the description is malformed.
    """
    if not text:
        return
    if not is_allowed:
        raise FaultError(f"{VARIABLE} is set, which injects faults; unset it, or give --allow-faults")
    ARMED.update(parse(text))
