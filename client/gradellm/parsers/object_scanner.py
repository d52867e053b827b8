"""Scans a JSON object a character at a time."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

__all__ = ["Member", "ObjectScanner"]

State = Literal["start", "first_key", "key", "in_key", "colon", "value", "string", "nested", "scalar", "next", "end"]
_PAIRS = {"}": "{", "]": "["}
_SPACE = " \t\n\r"
_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")


class Member(NamedTuple):
    """A member of the object; positions are counted from its opening brace."""

    key: str
    start: int
    end: int


class ObjectScanner:
    """Finds the members of an object's top level and its end.

    Strings and brackets are checked as they come; what is between them, by `json.loads` at the end.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        """Of the value that is being read, or was read last."""
        self.completed: Member | None = None
        """The member whose value the last character completed."""
        self.is_done = False
        self.is_failed = False
        self._state: State = "start"
        self._position = -1  # of the last character
        self._start = 0  # of the value
        self._key: list[str] = []
        self._stack: list[str] = []
        self._is_string = self._is_escaped = False  # in a nested value

    @property
    def is_unread(self) -> bool:
        """Whether only white space was read; it does not count in positions."""
        return self._state == "start"

    def push(self, character: str) -> bool:
        """Read the next character; return whether it belongs to a value of the top level."""
        if self._state == "start" and character in _SPACE:
            return False
        self._position += 1
        self.completed = None
        if self._state in ("string", "nested", "in_key"):
            return self._in_value(character)
        if self._state == "scalar":
            if character in _SCALAR:
                return True
            self._complete(self._position)
        if character in _SPACE:
            return False
        return self._between(character)

    def _between(self, character: str) -> bool:
        """Read a character that is no white space, outside of keys and values."""
        match self._state, character:
            case "start", "{":
                self._state = "first_key"
            case (("first_key" | "key"), '"'):
                self._state, self._key = "in_key", [character]
            case "first_key", "}":
                self._end()
            case "colon", ":":
                self._state = "value"
            case "value", '"':
                self._state, self._start = "string", self._position
                return True
            case "value", "{" | "[":
                self._state, self._start, self._stack = "nested", self._position, [character]
                return True
            case "value", _ if character in _SCALAR:
                self._state, self._start = "scalar", self._position
                return True
            case "next", ",":
                self._state = "key"
            case "next", "}":
                self._end()
            case _:
                self.is_failed = True
        return False

    def _in_value(self, character: str) -> bool:
        """Read a character of a key, a string or a nested value."""
        is_key = self._state == "in_key"
        if is_key:
            self._key.append(character)
        if self._state == "nested" and not self._is_string:
            self._nested(character)
        elif self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_string = False
            if is_key:
                self._read_key()
            elif self._state == "string":
                self._complete(self._position + 1)
        return not is_key

    def _nested(self, character: str) -> None:
        if character == '"':
            self._is_string = True
        elif character in "{[":
            self._stack.append(character)
        elif character in "}]":
            if self._stack.pop() != _PAIRS[character]:
                self.is_failed = True
            elif not self._stack:
                self._complete(self._position + 1)

    def _read_key(self) -> None:
        try:
            self.key = json.loads("".join(self._key))
        except ValueError:
            self.is_failed = True
        self._state = "colon"

    def _complete(self, end: int) -> None:
        self.completed = Member(self.key or "", self._start, end)
        self._state = "next"

    def _end(self) -> None:
        self.is_done, self._state = True, "end"
