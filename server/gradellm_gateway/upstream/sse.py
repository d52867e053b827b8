"""Server-sent events in a stream of bytes, cut apart without being changed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

__all__ = ["DONE", "MAX_EVENT_BYTES", "EventSplitter", "ServerSentEvent", "event_bytes"]

MAX_EVENT_BYTES = 8 << 20
"""Larger events are passed on in pieces, unread."""
DONE = b"[DONE]"

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """One event, or a piece of one that is too large.

    Attributes:
        raw: its bytes, the empty line at its end included.
        is_whole: False for a piece of an event of more than `MAX_EVENT_BYTES`.
    """

    raw: bytes
    is_whole: bool = True

    @property
    def data(self) -> bytes | None:
        """The event's data; None for comments, and for events with several lines of data or with other fields."""
        lines = [line for line in re.split(rb"\r\n|\n|\r", self.raw) if line]
        if not self.is_whole or len(lines) != 1 or not lines[0].startswith(b"data:"):
            return None
        return lines[0][5:].strip()


class EventSplitter:
    """Cuts a stream of bytes into events. What it returns adds up to what it was given, up to the last event's end."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()
        self._searched = 0  # bytes of `_pending` that no end of an event begins in
        self._is_oversized = False  # pieces of the event that `_pending` continues were returned already

    def add(self, data: bytes) -> list[ServerSentEvent]:
        """Return the events that these bytes complete, and pieces of one that is too large."""
        self._pending += data
        found = []
        while (end := _END.search(self._pending, self._searched)) is not None:
            is_whole = not self._is_oversized and end.end() <= self._max_bytes
            found.append(ServerSentEvent(bytes(self._pending[: end.end()]), is_whole))
            del self._pending[: end.end()]
            self._searched, self._is_oversized = 0, False
        self._searched = max(0, len(self._pending) - 3)
        if len(self._pending) > self._max_bytes:
            cut = self._searched  # an event's end may have begun in the last bytes
            found.append(ServerSentEvent(bytes(self._pending[:cut]), is_whole=False))
            del self._pending[:cut]
            self._searched, self._is_oversized = 0, True
        return found

    @property
    def has_rest(self) -> bool:
        """Whether the stream so far ends within an event."""
        return bool(self._pending) or self._is_oversized


def event_bytes(value: Any) -> bytes:  # noqa: ANN401 (any JSON value)
    """Return a JSON value as the data of an event; in ASCII if it has lone surrogates, which UTF-8 cannot encode."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        text = json.dumps(value, separators=(",", ":")).encode()
    return b"data: " + text + b"\n\n"
