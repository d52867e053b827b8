"""The output of a response: items of reasoning, text and calls, and their events in a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gradellm.models import Token
from gradellm.parsers.deltas import Delta

__all__ = ["Output"]

Kind = Literal["reasoning", "message", "function_call"]
_KINDS: dict[str, Kind] = {"reasoning": "reasoning", "content": "message"}  # of deltas; names begin a call
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_TEXTS: dict[Kind, str] = {
    "reasoning": "reasoning_text",
    "message": "output_text",
    "function_call": "function_call_arguments",
}


@dataclass
class _Item:
    """An item that is being written; the text of a call is its arguments."""

    kind: Kind
    id: str
    index: int
    name: str = ""
    call_id: str = ""
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def opening(self) -> list[dict[str, Any]]:
        """Return the events that begin it."""
        item = self._object("in_progress", is_begun=True)
        added = [{"type": "response.output_item.added", "output_index": self.index, "item": item}]
        if self.kind == "function_call":
            return added
        return [*added, {"type": "response.content_part.added", **self._place, "part": self._part("", [])}]

    def delta(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add a text; return the event."""
        self.text += text
        self.logprobs += logprobs
        own = {"logprobs": logprobs} if self.kind == "message" else {}
        return {"type": f"response.{_TEXTS[self.kind]}.delta", **self._place, "delta": text, **own}

    def closing(self, status: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the events that end it, and the whole item."""
        done = {"type": f"response.{_TEXTS[self.kind]}.done", **self._place}
        if self.kind == "function_call":
            status = "completed" if _is_object(self.text) else "incomplete"
            events = [done | {"name": self.name, "arguments": self.text}]
        else:
            part = self._part(self.text, self.logprobs)
            said = {name: value for name, value in part.items() if name in ("text", "logprobs")}
            events = [done | said, {"type": "response.content_part.done", **self._place, "part": part}]
        item = self._object(status)
        return [*events, {"type": "response.output_item.done", "output_index": self.index, "item": item}], item

    @property
    def _place(self) -> dict[str, Any]:
        part = {} if self.kind == "function_call" else {"content_index": 0}
        return {"item_id": self.id, "output_index": self.index, **part}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        own = {"annotations": [], "logprobs": logprobs} if self.kind == "message" else {}
        return {"type": _TEXTS[self.kind], "text": text, **own}

    def _object(self, status: str, *, is_begun: bool = False) -> dict[str, Any]:
        head = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            return {**head, "call_id": self.call_id, "name": self.name, "arguments": self.text}
        content = [] if is_begun else [self._part(self.text, self.logprobs)]
        if self.kind == "reasoning":
            return {**head, "summary": [], "content": content, "encrypted_content": None}
        return {**head, "role": "assistant", "content": content}


class Output:
    """Makes the items of one response.

    Args:
        request_id: of which the ids of items are made.
        new_call_id: makes the id of a call.
        logprobs: returns the log-probabilities of tokens, as far as the request asks for them.

    Attributes:
        items: those that have ended.
    """

    def __init__(
        self,
        request_id: str,
        new_call_id: Callable[[], str],
        logprobs: Callable[[Sequence[Token]], list[dict[str, Any]]],
    ) -> None:
        self._request_id, self._new_call_id, self._logprobs = request_id, new_call_id, logprobs
        self.items: list[dict[str, Any]] = []
        self._item: _Item | None = None
        self._tokens: list[Token] = []  # whose text is not sent: it may begin a call

    def add(self, deltas: Iterable[Delta], tokens: Sequence[Token] = ()) -> list[dict[str, Any]]:
        """Add what some tokens have brought; return the events.

        The log-probabilities of a message's tokens come with the next delta of its text.
        """
        deltas, events = list(deltas), []
        self._tokens += tokens
        for delta in deltas:
            kind = _KINDS.get(delta.kind, "function_call")
            if delta.kind == "name":
                events += self._begin("function_call", delta.text)
                continue
            if self._item is None or self._item.kind != kind:
                events += self._begin(kind)
            if self._item is not None:
                events.append(self._item.delta(delta.text, self._taken() if kind == "message" else []))
        if deltas and not any(delta.kind == "content" for delta in deltas):
            self.drop_tokens()
        return events

    def drop_tokens(self) -> None:
        """Forget the tokens whose text is not sent: they belong to no message."""
        self._tokens = []

    def finish(self, status: str) -> list[dict[str, Any]]:
        """End the last item with the response's status; return the events. A response without any has an empty text."""
        events = [] if self.items or self._item is not None else self._begin("message")
        if self._item is not None and self._item.kind == "message" and (logprobs := self._taken()):
            events.append(self._item.delta("", logprobs))
        return events + self._end(status)

    def _begin(self, kind: Kind, name: str = "") -> list[dict[str, Any]]:
        events, index = self._end("completed"), len(self.items)
        call_id = self._new_call_id() if kind == "function_call" else ""
        self._item = _Item(kind, f"{_PREFIXES[kind]}_{self._request_id}_{index}", index, name, call_id)
        return events + self._item.opening()

    def _end(self, status: str) -> list[dict[str, Any]]:
        if self._item is None:
            return []
        events, item = self._item.closing(status)
        self.items.append(item)
        self._item = None
        return events

    def _taken(self) -> list[dict[str, Any]]:
        tokens, self._tokens = self._tokens, []
        return self._logprobs(tokens)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
