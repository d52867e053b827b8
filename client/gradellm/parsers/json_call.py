"""A call as a JSON object: {"name": ..., "arguments": ...}."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gradellm.parsers.deltas import ArgumentSpan
from gradellm.parsers.object_scanner import ObjectScanner

if TYPE_CHECKING:
    from gradellm.parsers.base import CallParser

__all__ = ["ArgumentsReader", "JsonCall"]

_ARGUMENTS = ("arguments", "parameters")


class ArgumentsReader:
    """Finds the spans of the values in the arguments of a parser's last call."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._scanner = ObjectScanner()
        self.values: list[ArgumentSpan] = []

    @property
    def is_done(self) -> bool:
        """Whether the object has ended."""
        return self._scanner.is_done

    @property
    def is_failed(self) -> bool:
        """Whether it is no object."""
        return self._scanner.is_failed

    def push(self, character: str) -> None:
        """Read the next character of the arguments."""
        if self._scanner.is_done or self._scanner.is_failed:
            return
        self._scanner.push(character)
        if (member := self._scanner.completed) is not None:
            self.values.append(ArgumentSpan(member.key, self._start + member.start, self._start + member.end))


class JsonCall:
    """Reads one call, and begins it in a parser once its name is known and its arguments begin.

    Args:
        parser: the parser of the answer, which holds back the call's text.
        needs_arguments: whether an object without arguments is no call.
    """

    def __init__(self, parser: CallParser, *, needs_arguments: bool = False) -> None:
        self._parser, self._needs_arguments = parser, needs_arguments
        self._scanner = ObjectScanner()
        self._origin = parser.position  # of the object
        self._name: tuple[str, tuple[int, int]] | None = None
        self._name_text: list[str] = []
        self._reader: ArgumentsReader | None = None  # of arguments that are an object
        self._waiting: list[str] = []  # arguments that cannot be sent yet
        self._ready: str | None = None  # all of them
        self._arguments_span: tuple[int, int] | None = None
        self.is_begun = self.is_done = self.is_failed = False

    def push(self, character: str) -> None:
        """Read the next character."""
        if self._scanner.is_unread:
            self._origin = self._parser.position
        if not self.is_begun:
            self._parser.hold(character)
        if self._scanner.push(character):
            if self._scanner.key == "name":
                self._name_text.append(character)
            elif self._scanner.key in _ARGUMENTS:
                self._read_argument(character)
        if (member := self._scanner.completed) is not None:
            self._complete(member.key, (self._origin + member.start, self._origin + member.end))
        if self._scanner.is_done:
            self._end()
        self.is_failed = self.is_failed or self._scanner.is_failed
        if self.is_begun:
            self._parser.extend_call()

    def _read_argument(self, character: str) -> None:
        if self._arguments_span is not None:  # a second member of such a name
            self.is_failed = True
            return
        if not self._waiting and self._reader is None and character == "{":
            self._reader = ArgumentsReader(self._parser.position)
            self._begin()
        if self._reader is not None:
            self._reader.push(character)
        if self.is_begun:
            self._parser.add_arguments(character)
        else:
            self._waiting.append(character)

    def _complete(self, key: str, span: tuple[int, int]) -> None:
        """Take a value that is complete."""
        if key == "name":
            self._take_name(span)
        elif key in _ARGUMENTS and not self.is_failed:
            self._arguments_span = span
            text = "".join(self._waiting)
            self._ready = text if self._reader is not None else _decoded(text)
            if self.is_begun:
                self._close_arguments()
        if self._name is not None and self._ready is not None and not (self.is_begun or self.is_failed):
            self._begin()
            self._parser.add_arguments(self._ready)
            self._close_arguments()

    def _take_name(self, span: tuple[int, int]) -> None:
        try:
            name = json.loads("".join(self._name_text))
        except ValueError:
            name = None
        if self._name is not None or not isinstance(name, str) or not name.strip():
            self.is_failed = True
        else:
            self._name = name, (span[0] + 1, span[1] - 1)

    def _begin(self) -> None:
        """Begin the call in the parser, if its name is known."""
        if self._name is not None:
            self._parser.begin_call(*self._name)
            self.is_begun = True

    def _close_arguments(self) -> None:
        draft = self._parser.drafts[-1]
        draft.arguments_span = self._arguments_span
        if self._reader is not None:
            draft.values = self._reader.values

    def _end(self) -> None:
        """End the object."""
        if not self.is_begun and (self._name is None or self._needs_arguments):
            self.is_failed = True
        if self.is_failed:
            return
        if not self.is_begun:
            self._begin()
            self._parser.add_arguments("{}")
        self._parser.drafts[-1].is_closed = self.is_done = True


def _decoded(text: str) -> str:
    """Return arguments that are no object: JSON in a string, or null for none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str) else "{}" if value is None else text
