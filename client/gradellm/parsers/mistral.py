"""Calls after a marker: [TOOL_CALLS][{"name": ..., "arguments": ...}], or [TOOL_CALLS]name[ARGS]{...}, of Mistral."""

from __future__ import annotations

import re
from typing import ClassVar

from gradellm.parsers.base import CallParser, MarkerMatch
from gradellm.parsers.json_call import ArgumentsReader, JsonCall

__all__ = ["MistralParser"]

_NAME = re.compile(r"[\w./-]{1,256}")


class MistralParser(CallParser):
    """Reads a list of calls, or a name with arguments after each marker."""

    markers: ClassVar[tuple[str, ...]] = ("[TOOL_CALLS]",)
    _is_list = False

    def on_marker(self, marker: str) -> None:
        """Read a list or a name."""
        self._name: list[str] = []
        self._name_start = 0
        self._args = MarkerMatch("[ARGS]")
        self.state = self._read_form

    def _read_form(self, character: str) -> None:
        """Read the first character after the marker: it tells the form."""
        if character.isspace():
            self.hold(character)
        elif character in "[{":
            self._is_list = character == "["
            self._call = JsonCall(self)
            self.state = self._read_call
            if self._is_list:
                self.hold(character)
            else:
                self._read_call(character)
        else:
            self._name_start = self.position
            self.state = self._read_name
            self._read_name(character)

    # --- a list -------------------------------------------------------------------------------------------------------

    def _read_call(self, character: str) -> None:
        self._call.push(character)
        if self._call.is_done:
            self.state = self._read_between if self._is_list else self.read_content
        elif self._call.is_failed and self._call.is_begun:
            self.state = self._read_broken
        elif self._call.is_failed:
            self.refuse_before()

    def _read_between(self, character: str) -> None:
        """Read white space, a comma or the end of the list between calls."""
        if character == ",":
            self.open(character)
            self._call = JsonCall(self)
            self.state = self._read_call
        elif character == "]":
            self.extend_call()
            self.state = self.read_content
        elif not character.isspace():
            self.reread(character)

    def _read_broken(self, character: str) -> None:
        self.add_arguments(character)
        self.extend_call()

    # --- a name and arguments -----------------------------------------------------------------------------------------

    def _read_name(self, character: str) -> None:
        self.hold(character)
        free, marker = self._args.push(character)
        is_object = free.endswith("{")
        self._name.append(free[:-1] if is_object else free)
        name = "".join(self._name).rstrip()
        if not (marker or is_object):
            if name and not _NAME.fullmatch(name):
                self.refuse_before()
            return
        if not _NAME.fullmatch(name):
            self.refuse_before()
            return
        self.begin_call(name, (self._name_start, self._name_start + len(name)))
        self.state = self._read_arguments
        self._reader: ArgumentsReader | None = None
        if is_object:
            self._read_arguments(character)

    def _read_arguments(self, character: str) -> None:
        if self._reader is None:
            if character.isspace():
                return
            self._reader = ArgumentsReader(self.position)
        self._reader.push(character)
        self.add_arguments(character)
        self.extend_call()
        draft = self.drafts[-1]
        draft.values = self._reader.values
        draft.arguments_span = (draft.arguments_span or (self.position, 0))[0], self.position + 1
        if self._reader.is_done:
            draft.is_closed = True
            self.state = self.read_content
        elif self._reader.is_failed:
            self.state = self._read_broken
