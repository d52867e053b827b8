"""Calls as JSON from the beginning of the answer: {"name": ..., "parameters": ...}; ..., of Llama 3 and 4."""

from __future__ import annotations

from typing import ClassVar

from gradellm.parsers.base import CallParser
from gradellm.parsers.json_call import JsonCall

__all__ = ["Llama3JsonParser"]

_TAG = "<|python_tag|>"


class Llama3JsonParser(CallParser):
    """Reads calls at the beginning of the answer, separated by semicolons; anything else before makes it text.

    An object without arguments is no call: an answer may be JSON.
    """

    markers: ClassVar[tuple[str, ...]] = (_TAG, "{")
    _is_text = False  # no call comes any more

    def read_content(self, character: str) -> None:
        """Read a character outside of calls."""
        if self._is_text:
            self.add_content(character, self.position + 1)
            return
        if character == ";" and self.drafts and not self._match.held:
            return
        super().read_content(character)
        if self.layout and isinstance(self.layout[-1], str):
            self._is_text = True
            self.add_content(self._match.flush(), self.position + 1)

    def on_marker(self, marker: str) -> None:
        """Read a call's object."""
        self._call = JsonCall(self, needs_arguments=True)
        self.state = self._read_call
        if marker == "{":
            self._raw.clear()
            self._read_call(marker)

    def _read_call(self, character: str) -> None:
        self._call.push(character)
        if self._call.is_done:
            self.state = self.read_content
        elif self._call.is_failed:
            self._is_text = not self._call.is_begun
            self.refuse(None if self._is_text else self._read_broken)

    def _read_broken(self, character: str) -> None:
        self.add_arguments(character)
        self.extend_call()
