"""Which of several servers is asked next.

One target may stand for several servers, too: a `dns:///` name for all its addresses, over which gRPC shares the calls
by itself, in turn. It looks the name up again when a server fails, and when a server replaces a connection, as ours do
every 20 s (`connection_seconds` of its settings): so it finds those that were added. A server that is cut off without
a word is noticed after 10 s where something was sent to it, else within 30 s
(`gradellm.transport.calls.CHANNEL_OPTIONS`).
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Rotation", "check_ports", "may_be_several", "split"]

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 30.0  # that a server which failed is left alone, and at most


def split(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the single targets of "a:1,b:2" or ["a:1", "b:2"].

    Raises InvalidRequestError where there are none, or one is empty.
    """
    listed = [target] if isinstance(target, str) else list(target)
    targets = tuple(
        part.strip()
        for one in listed
        for part in ([one] if one.startswith(("ipv4:", "ipv6:", "unix:")) else one.split(","))  # gRPC's own lists
    )
    if not targets or not all(targets):
        raise InvalidRequestError.of("target", f"must be host:port, or several with commas between, not {target!r}")
    return targets


def may_be_several(target: str) -> bool:
    """Whether gRPC may find several servers behind one target."""
    return target.startswith("dns:") or (target.startswith(("ipv4:", "ipv6:")) and "," in target)


def check_ports(targets: Sequence[str]) -> None:
    """Raise InvalidRequestError for a host without a port: gRPC would ask at 443, where TLS is expected."""
    for target in targets:
        if "/" not in target and not target.startswith("unix") and not re.search(r":\d+$", target):
            raise InvalidRequestError.of(
                "target", f"{target} has no port: say {target}:50051, or where the server listens"
            )


class Rotation:
    """Takes targets in turn; those that failed lately wait, longer each time. For several threads."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._lock = threading.Lock()
        self._next = 0
        self._failures = [0] * count
        self._out_until = [0.0] * count

    def take(self) -> int:
        """Choose the next target; where all failed lately, the one whose time is up first."""
        with self._lock:
            now = self._clock()
            order = [(self._next + step) % self._count for step in range(self._count)]
            chosen = next((i for i in order if self._out_until[i] <= now), None)
            if chosen is None:
                chosen = min(order, key=self._out_until.__getitem__)
            self._next = (chosen + 1) % self._count
            return chosen

    def failed(self, index: int, seconds: float | None = None) -> bool:
        """Leave a target alone for so long, or longer each time. Returns whether there is another one now."""
        with self._lock:
            now = self._clock()
            self._failures[index] += 1
            doubled: float = _FIRST_SECONDS * 2 ** min(self._failures[index] - 1, 10)
            self._out_until[index] = now + min(_LONGEST_SECONDS, doubled if seconds is None else seconds)
            return any(until <= now for place, until in enumerate(self._out_until) if place != index)

    def worked(self, index: int) -> None:
        """Forget a target's failures."""
        with self._lock:
            self._failures[index] = 0
            self._out_until[index] = 0.0
