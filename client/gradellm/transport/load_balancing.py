"""Client-side load balancing over several targets.

A `dns:///` target is balanced by gRPC itself, round robin over the addresses of the name. gRPC resolves the name again
when a server fails and when a server closes a connection, which ours do every 20 s (`connection_seconds` of the server
settings), so that added replicas are found. A server that becomes unreachable without closing its connections is
detected after 10 s during a call, else within 30 s (keepalive, `gradellm.transport.channels.CHANNEL_OPTIONS`).
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Rotation", "check_ports", "resolves_to_many", "split"]

_FIRST_SECONDS, _MAX_SECONDS = 1.0, 30.0  # how long a failed target is skipped: at first, and at most


def split(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the single targets of "a:1,b:2" or ["a:1", "b:2"].

    Raises InvalidRequestError for no target or an empty one.
    """
    texts = [target] if isinstance(target, str) else list(target)
    targets = tuple(
        single.strip()
        for text in texts
        for single in ([text] if text.startswith(("ipv4:", "ipv6:", "unix:")) else text.split(","))  # gRPC's own lists
    )
    if not targets or not all(targets):
        raise InvalidRequestError.of("target", f"must be host:port, or several separated by commas, not {target!r}")
    return targets


def resolves_to_many(target: str) -> bool:
    """Whether gRPC may resolve a target to several addresses."""
    return target.startswith("dns:") or (target.startswith(("ipv4:", "ipv6:")) and "," in target)


def check_ports(targets: Sequence[str]) -> None:
    """Raise InvalidRequestError for a host without a port, for which gRPC would use 443, the port of TLS."""
    for target in targets:
        if "/" not in target and not target.startswith("unix") and not re.search(r":\d+$", target):
            raise InvalidRequestError.of("target", f"{target} has no port: say {target}:50051, or the server's port")


class Rotation:
    """Round robin over targets. A target that fails is skipped, twice as long after each failure. Thread-safe."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._lock = threading.Lock()
        self._next = 0
        self._failures = [0] * count
        self._down_until = [0.0] * count

    def pick(self) -> int:
        """Return the index of the next target; if all are down, of the one that is up first."""
        with self._lock:
            now = self._clock()
            order = [(self._next + step) % self._count for step in range(self._count)]
            picked = next((index for index in order if self._down_until[index] <= now), None)
            if picked is None:
                picked = min(order, key=self._down_until.__getitem__)
            self._next = (picked + 1) % self._count
            return picked

    def mark_down(self, index: int, seconds: float | None = None) -> bool:
        """Skip a target for `seconds`, by default with exponential backoff. Return whether another target is up."""
        with self._lock:
            now = self._clock()
            self._failures[index] += 1
            backoff: float = _FIRST_SECONDS * 2 ** min(self._failures[index] - 1, 10)
            self._down_until[index] = now + min(_MAX_SECONDS, backoff if seconds is None else seconds)
            return any(until <= now for other, until in enumerate(self._down_until) if other != index)

    def mark_up(self, index: int) -> None:
        """Reset a target's failures."""
        with self._lock:
            self._failures[index] = 0
            self._down_until[index] = 0.0
