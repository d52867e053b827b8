"""What parsers return: deltas of a stream, and the calls of a whole answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal, NoReturn

__all__ = ["Answer", "ArgumentSpan", "CallDraft", "Delta", "WrittenCall"]

Kind = Literal["reasoning", "content", "name", "arguments"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: text of one kind. A call's name comes whole, then its arguments in pieces."""

    kind: Kind
    text: str
    call: int | None = None
    """Index of the call, from 0, of a name and of arguments."""


@dataclass(frozen=True, slots=True)
class ArgumentSpan:
    """An argument of a call: a member of the top level of its arguments."""

    name: str
    start: int
    """The first code point of its value in the completion's text."""
    end: int
    """One past the value's last code point."""


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call of a tool as the model wrote it."""

    index: int
    """Its index among the calls of the answer."""
    name: str
    arguments: str
    """JSON as the model wrote it; made from XML by qwen3_coder."""
    start: int
    """The first code point of the call in the completion's text, its markers included."""
    end: int
    """One past its last code point."""
    name_span: tuple[int, int]
    arguments_span: tuple[int, int]
    """Empty, at `end`, for a call without arguments."""
    values: tuple[ArgumentSpan, ...]
    is_complete: bool
    """Whether it ends as a call does, with a JSON object for arguments."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in parts. A malformed call is text."""

    content: str
    reasoning: str
    calls: tuple[WrittenCall, ...]
    content_start: int
    """The first code point of the content in the completion's text; its end if there is none."""
    reasoning_span: tuple[int, int]


@dataclass
class CallDraft:
    """A call that is being written."""

    index: int
    name: str
    start: int
    name_span: tuple[int, int]
    end: int = 0
    arguments: list[str] = field(default_factory=list)
    arguments_span: tuple[int, int] | None = None
    values: list[ArgumentSpan] = field(default_factory=list)
    is_closed: bool = False

    def written(self) -> WrittenCall:
        """Return the call so far."""
        arguments = "".join(self.arguments)
        return WrittenCall(
            self.index,
            self.name,
            arguments,
            self.start,
            self.end,
            self.name_span,
            self.arguments_span or (self.end, self.end),
            tuple(self.values),
            self.is_closed and _is_object(arguments),
        )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
