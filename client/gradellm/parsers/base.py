"""The base of parsers of calls: content before, between and after calls, and the deltas."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from gradellm.parsers.deltas import CallDraft, Delta, WrittenCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gradellm.parsers.deltas import Kind

__all__ = ["CallParser", "MarkerMatch", "TextParser", "joined"]


class MarkerMatch:
    """Finds markers in a text: holds back what may be the beginning of one."""

    def __init__(self, *markers: str) -> None:
        self._markers = markers
        self.held = ""

    def push(self, character: str) -> tuple[str, str]:
        """Read a character; return the text that is not part of a marker, and the marker that it completes."""
        self.held += character
        free = ""
        while self.held and not any(marker.startswith(self.held) for marker in self._markers):
            free, self.held = free + self.held[0], self.held[1:]
        found, self.held = (self.held, "") if self.held in self._markers else ("", self.held)
        return free, found

    def flush(self) -> str:
        """Return what is held back, at the end of the text."""
        held, self.held = self.held, ""
        return held


class CallParser:
    """Splits an answer into content and calls of tools.

    Text that looks like the beginning of a call is held back until the tool's name is there and its arguments begin;
    if it was none, it is content. White space next to calls is dropped.

    Args:
        tools: definitions of the request, in OpenAI's form; only qwen3_coder needs them, for types.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    """Texts that begin a call."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tools = tools
        self.position = 0
        """The code point that is read next."""
        self.drafts: list[CallDraft] = []
        self.layout: list[str | int] = []
        """Content and indexes of calls, in order."""
        self.content_start: int | None = None
        self.state: Callable[[str], None] = self.read_content
        self._match = MarkerMatch(*self.markers)
        self._space: list[str] = []  # content, unless a call follows
        self._space_start = 0
        self._raw: list[str] = []  # of what may be a call
        self._raw_start = 0
        self._deltas: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        """Read the next piece of the text."""
        for character in text:
            self.state(character)
            self.position += 1
        return self.take()

    def finish(self) -> list[Delta]:
        """End the text: what is held back becomes content, and a call that is not complete stays so."""
        self.close()
        self.refuse()
        if self._space and not (self.layout and isinstance(self.layout[-1], int)):
            self._emit_content("", self._space_start)
        return self.take()

    def take(self) -> list[Delta]:
        """Return the deltas since the last call."""
        deltas, self._deltas = self._deltas, []
        return joined(deltas)

    @property
    def calls(self) -> list[WrittenCall]:
        """The calls so far, malformed ones included."""
        return [draft.written() for draft in self.drafts]

    def close(self) -> None:
        """End the text in the parser's own state."""
        self.add_content(self._match.flush(), self.position)

    def read_content(self, character: str) -> None:
        """Read a character outside of calls."""
        free, marker = self._match.push(character)
        self.add_content(free, self.position + 1 - len(self._match.held or marker))
        if marker:
            self.open(marker)
            self.on_marker(marker)

    def on_marker(self, marker: str) -> None:
        """Go on after a marker."""
        raise NotImplementedError

    # --- what may be a call -------------------------------------------------------------------------------------------

    def open(self, text: str) -> None:
        """Hold back text that ends at the current character: a call may begin with it."""
        self._raw, self._raw_start = [text], self.position + 1 - len(text)

    def hold(self, character: str) -> None:
        """Hold back the next character."""
        self._raw.append(character)

    def refuse(self, next_state: Callable[[str], None] | None = None) -> None:
        """Make what is held back content, and go on: it was no call."""
        raw, self._raw = "".join(self._raw), []
        self.add_content(raw, self._raw_start + len(raw))
        self.state = next_state or self.read_content

    def refuse_before(self) -> None:
        """Make what is held back content, and read the last character again: a call may begin with it."""
        last = self._raw.pop()
        self.refuse()
        self.state(last)

    def reread(self, text: str) -> None:
        """Read text that ends at the current character again, as content."""
        end, self.state = self.position, self.read_content
        for index, character in enumerate(text, end + 1 - len(text)):
            self.position = index
            self.state(character)
        self.position = end

    def begin_call(self, name: str, name_span: tuple[int, int]) -> CallDraft:
        """Begin a call with what is held back."""
        draft = CallDraft(len(self.drafts), name, self._raw_start, name_span, self.position + 1)
        self.drafts.append(draft)
        self.layout.append(draft.index)
        self._raw, self._space = [], []
        self._emit("name", name, draft.index)
        return draft

    def add_arguments(self, text: str) -> None:
        """Add to the arguments of the last call."""
        draft = self.drafts[-1]
        draft.arguments.append(text)
        self._emit("arguments", text, draft.index)

    def extend_call(self) -> None:
        """Let the last call end after the current character."""
        self.drafts[-1].end = self.position + 1

    # --- content ------------------------------------------------------------------------------------------------------

    def add_content(self, text: str, end: int) -> None:
        """Add content that ends before code point `end`."""
        for index, character in enumerate(text, end - len(text)):
            if character.isspace():
                if not self._space:
                    self._space_start = index
                self._space.append(character)
            else:
                self._emit_content(character, self._space_start if self._space else index)

    def _emit_content(self, character: str, start: int) -> None:
        text = f"{''.join(self._space)}{character}"
        self._space = []
        if self.content_start is None:
            self.content_start = start
        self.layout.append(text)
        self._emit("content", text)

    def _emit(self, kind: Kind, text: str, call: int | None = None) -> None:
        self._deltas.append(Delta(kind, text, call))


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Return deltas with neighbours of the same kind and call as one."""
    return [
        Delta(kind, "".join(delta.text for delta in group), call)
        for (kind, call), group in groupby(deltas, key=lambda delta: (delta.kind, delta.call))
    ]


class TextParser(CallParser):
    """An answer without calls: content as it is."""

    def push(self, text: str) -> list[Delta]:
        """Read the next piece of the text."""
        if not text:
            return []
        if self.content_start is None:
            self.content_start = self.position
        self.position += len(text)
        self.layout.append(text)
        return [Delta("content", text)]

    def finish(self) -> list[Delta]:
        """End the text."""
        return []
