"""Where the messages of a chat are in the prompt that the upstream made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradellm import InvalidRequestError, TokenizedPrompt
from gradellm_gateway.documents import Span

__all__ = ["ChatMessage", "PlacedMessages", "place_messages"]

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ChatMessage:
    """A message's role, and its text in parts, as the request has them."""

    role: str
    parts: tuple[str, ...]

    @property
    def content(self) -> str:
        """The parts together."""
        return "".join(self.parts)

    @classmethod
    def of(cls, message: object) -> ChatMessage:
        """Read a message of a request; what is no text has no part."""
        fields = message if isinstance(message, Mapping) else {}
        role, content = fields.get("role"), fields.get("content")
        role = _ROLES.get(role, role) if isinstance(role, str) else None
        parts = content if isinstance(content, list) else [content]
        texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
        return cls(
            role if role in _KNOWN_ROLES else "other", tuple(each for each in texts if isinstance(each, str) and each)
        )


@dataclass(frozen=True)
class _Place:
    """A part of a message's content that was found in the prompt: from `content_start` on, `length` code points."""

    content_start: int
    prompt_start: int
    length: int


@dataclass(frozen=True)
class PlacedMessages:
    """Messages in a prompt's text.

    Attributes:
        spans: of the messages that were found: role, first code point, one past the last.
    """

    spans: tuple[tuple[str, int, int], ...]
    _places: tuple[tuple[_Place, ...], ...]

    def span(self, name: str, segment: Span) -> tuple[int, int]:
        """Return a segment's span in the prompt. Raises InvalidRequestError if its message was not found there."""
        message, start, end = segment
        return self._position(name, message, start, is_end=False), self._position(name, message, end, is_end=True)

    def _position(self, name: str, message: int, position: int, *, is_end: bool) -> int:
        for place in self._places[message]:
            inside = position - place.content_start
            if (0 < inside <= place.length) if is_end else (0 <= inside < place.length):
                return place.prompt_start + inside
        raise InvalidRequestError.of(
            f"gradellm.segments.{name}", "is not in the upstream's prompt as it stands in the messages"
        )


def place_messages(messages: Sequence[ChatMessage], prompt: TokenizedPrompt) -> PlacedMessages:
    """Find the messages in a prompt, one after the other; parts that a chat template rewrote are not found.

    A place where tokens begin and end is preferred: a short message may be in a word of the template, too.
    """
    text = prompt.prompt_text
    starts, ends = {token.start for token in prompt.tokens}, {token.end for token in prompt.tokens}
    spans: list[tuple[str, int, int]] = []
    all_places = []
    position = 0
    for message in messages:
        places: list[_Place] = []
        content_start = 0
        for part in message.parts:
            written = part.strip()  # as many templates do
            for shown in (part, written):
                found = _find(shown, text, position, starts, ends) if shown else None
                if found is not None:
                    places.append(_Place(content_start + part.index(shown), found, len(shown)))
                    position = found + len(shown)
                    break
            content_start += len(part)
        if places:
            spans.append((message.role, places[0].prompt_start, position))
        all_places.append(tuple(places))
    return PlacedMessages(tuple(spans), tuple(all_places))


def _find(part: str, text: str, position: int, starts: set[int], ends: set[int]) -> int | None:
    first = found = text.find(part, position)
    while found >= 0:
        if found in starts and found + len(part) in ends:
            return found
        found = text.find(part, found + 1)
    return first if first >= 0 else None
