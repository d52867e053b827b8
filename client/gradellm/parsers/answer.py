"""Splits an answer into reasoning, content and calls, in a stream or at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gradellm.parsers.base import TextParser, joined
from gradellm.parsers.deltas import Answer, Delta

if TYPE_CHECKING:
    from gradellm.parsers.base import CallParser
    from gradellm.parsers.reasoning import ReasoningParser

__all__ = ["AnswerParser"]


class AnswerParser:
    """Parses one answer.

    Args:
        calls: parses calls; by default there are none.
        reasoning: parses reasoning; by default there is none.
    """

    def __init__(self, calls: CallParser | None = None, reasoning: ReasoningParser | None = None) -> None:
        self._calls = calls or TextParser()
        self._reasoning = reasoning
        self._text: list[str] = []
        self._thoughts: list[str] = []

    @property
    def num_calls(self) -> int:
        """The number of calls that have begun, malformed ones included."""
        return len(self._calls.drafts)

    @property
    def reasoning_span(self) -> tuple[int, int]:
        """Of the reasoning with its tags, once it is over."""
        return (0, 0) if self._reasoning is None else self._reasoning.span

    def push(self, text: str) -> list[Delta]:
        """Read the next piece of the completion's text; return what is certain of the answer."""
        self._text.append(text)
        if self._reasoning is None or self._reasoning.is_over:
            return self._calls.push(text)
        return self._split(self._reasoning, self._reasoning.push(text))

    def finish(self) -> list[Delta]:
        """End the text; return the rest of the answer."""
        last = [] if self._reasoning is None else self._split(self._reasoning, self._reasoning.finish())
        return joined([*last, *self._calls.finish()])

    def _split(self, parser: ReasoningParser, parts: tuple[str, str]) -> list[Delta]:
        thought, rest = parts
        self._thoughts.append(thought)
        if parser.is_over:
            self._calls.position = parser.span[1]
        deltas = [Delta("reasoning", thought)] if thought else []
        return deltas + (self._calls.push(rest) if rest else [])

    def answer(self) -> Answer:
        """Return the finished answer as a whole, in which malformed calls are text."""
        text = "".join(self._text)
        start, end = self.reasoning_span
        calls = self._calls.calls
        complete = [call for call in calls if call.is_complete]
        if complete:
            parts = [
                part
                if isinstance(part, str)
                else ""
                if (call := calls[part]).is_complete
                else text[call.start : call.end]
                for part in self._calls.layout
            ]
            content = "".join(parts)
        else:
            content = text[end:]
        content_start = self._calls.content_start if complete else end
        return Answer(
            content,
            "".join(self._thoughts),
            tuple(replace(call, index=index) for index, call in enumerate(complete)),
            len(text) if content_start is None else content_start,
            (start, end),
        )
