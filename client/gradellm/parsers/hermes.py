"""Calls between tags: <tool_call>{"name": ..., "arguments": ...}</tool_call>, of Hermes, Qwen 2.5 and Qwen 3."""

from __future__ import annotations

from typing import ClassVar

from gradellm.parsers.base import CallParser, MarkerMatch
from gradellm.parsers.json_call import JsonCall

__all__ = ["HermesParser"]

_END = "</tool_call>"


class HermesParser(CallParser):
    """Reads calls between tags. A call at the end of the answer may lack its closing tag."""

    markers: ClassVar[tuple[str, ...]] = ("<tool_call>",)

    def on_marker(self, marker: str) -> None:
        """Read a call's object."""
        self._call = JsonCall(self)
        self.state = self._read_call

    def _read_call(self, character: str) -> None:
        self._call.push(character)
        if self._call.is_done:
            self._closing = MarkerMatch(_END)
            self.state = self._read_closing
        elif self._call.is_failed and self._call.is_begun:
            self._closing = MarkerMatch(_END)
            self.state = self._read_broken
        elif self._call.is_failed:
            self.refuse_before()

    def _read_closing(self, character: str) -> None:
        """Read white space and the closing tag after a call."""
        if character.isspace() and not self._closing.held:
            return
        free, marker = self._closing.push(character)
        if marker:
            self.extend_call()
            self.state = self.read_content
        elif free:
            self.reread(free + self._closing.held)

    def _read_broken(self, character: str) -> None:
        """Read what is no JSON up to the closing tag; it is sent as it is."""
        free, marker = self._closing.push(character)
        if free:
            self.add_arguments(free)
        self.extend_call()
        if marker:
            self.state = self.read_content
