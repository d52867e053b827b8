"""A generated example: messages, the answer, and the character spans of the evidence that decides it.

Evidence is the ground truth of attribution tests, so it is never searched for in finished text: a text is built from
`Piece`s, those of evidence have a kind, and `render` computes their offsets.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["sentiment", "boolq", "why", "two_hop"]
Split = Literal["train", "held_out"]
Role = Literal["system", "user", "assistant"]

TASKS: tuple[Task, ...] = ("sentiment", "boolq", "why")
"""The tasks of the model that ships. `two_hop` has a model of its own, `two_hop/train.py`."""

_MARKUP = re.compile(r"\[(?P<negator>[^]]+)]|\{(?P<field>\w+)}")
_HELD_OUT_ONE_IN = 5


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as chat templates take it."""

    role: Role
    content: str


@dataclass(frozen=True)
class Piece:
    """A part of a text; a non-empty `kind` marks it as evidence."""

    text: str
    kind: str = ""
    replacement: str = ""


@dataclass(frozen=True)
class Span:
    """Evidence at the code points [start, end) of the last user message.

    `replacement`, if not empty, is the text that `counterfactual` puts in its place.
    """

    start: int
    end: int
    kind: str
    replacement: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt with its only correct answer; the last message is the user's.

    `construction` names the form of the text (for sentiment: plain, negation, contrast, distractor), for breakdowns.
    """

    task: Task
    construction: str
    messages: tuple[Message, ...]
    answer: str
    evidence: tuple[Span, ...]

    @property
    def user_content(self) -> str:
        """The text that evidence spans index."""
        return self.messages[-1].content


def in_split(split: Split, left: str, right: str) -> bool:
    """Whether a pair of content choices belongs to `split`: by its SHA-256, one pair in five is held out."""
    digest = hashlib.sha256(f"{left}|{right}".encode()).digest()
    held_out = int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0
    return held_out == (split == "held_out")


def fill(template: str, fields: Mapping[str, str | Piece | list[Piece]]) -> list[Piece]:
    """Write a template as pieces: `{name}` takes a field, `[words]` marks a negator, the rest is plain text."""
    pieces: list[Piece] = []
    position = 0
    for match in _MARKUP.finditer(template):
        pieces.append(Piece(template[position : match.start()]))
        if match["negator"]:
            pieces.append(Piece(match["negator"], "negator"))
        else:
            field = fields[match["field"]]
            if isinstance(field, str):
                field = Piece(field)
            pieces.extend(field if isinstance(field, list) else [field])
        position = match.end()
    pieces.append(Piece(template[position:]))
    return [piece for piece in pieces if piece.text]


def plain(pieces: Iterable[Piece]) -> list[Piece]:
    """Take all marks of evidence off."""
    return [Piece(piece.text) for piece in pieces]


def sentence(pieces: Sequence[Piece], end: str = ".") -> list[Piece]:
    """Capitalise the first letter (also of a replacement that would stand there) and add the final mark."""
    first = pieces[0]
    return [Piece(_capital(first.text), first.kind, _capital(first.replacement)), *pieces[1:], Piece(end)]


def render(pieces: Iterable[Piece], offset: int = 0) -> tuple[str, tuple[Span, ...]]:
    """Join pieces to text; spans are shifted by `offset`, the length of what will precede the text."""
    text = ""
    spans: list[Span] = []
    for piece in pieces:
        start = offset + len(text)
        text += piece.text
        if piece.kind:
            spans.append(Span(start, offset + len(text), piece.kind, piece.replacement))
    return text, tuple(spans)


def join(parts: Iterable[Sequence[Piece]], separator: str = " ") -> list[Piece]:
    """Concatenate runs of pieces with a separator between them."""
    joined: list[Piece] = []
    for part in parts:
        if joined:
            joined.append(Piece(separator))
        joined.extend(part)
    return joined


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
