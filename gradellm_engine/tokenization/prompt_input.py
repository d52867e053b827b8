"""A request's input: a raw prompt, messages or token ids, with named segments. It validates itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.chat_template import Message


@dataclass(frozen=True)
class Segment:
    """A named part of the caller's text.

    Attributes:
        name: unique in an input.
        start: its first code point in the raw prompt, or in the message's content.
        end: one past its last code point.
        message: index of the message; None for a raw prompt.
    """

    name: str
    start: int
    end: int
    message: int | None = None


@dataclass(frozen=True)
class PromptInput:
    """A request's input: exactly one of a raw prompt, messages and token ids.

    Attributes:
        prompt: a raw prompt.
        messages: turns for the model's chat template.
        prompt_ids: token ids.
        segments: named parts of the text, which do not overlap.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        is_given = {
            "input.prompt": self.prompt is not None,
            "input.messages": bool(self.messages),
            "input.prompt_ids": bool(self.prompt_ids),
        }
        names = [name for name, given in is_given.items() if given]
        if len(names) != 1:
            found = f"{' and '.join(names)} were given" if names else "none was given"
            raise InvalidRequestError("input", f"give exactly one of {', '.join(is_given)}; {found}")
        if self.prompt is not None:
            if not self.prompt:
                raise InvalidRequestError("input.prompt", "must not be empty")
            check_text("input.prompt", self.prompt)
        for index, message in enumerate(self.messages):
            if not message.role:
                raise InvalidRequestError(f"input.messages[{index}].role", "must not be empty")
            check_text(f"input.messages[{index}].role", message.role)
            check_text(f"input.messages[{index}].content", message.content)
        self._check_segments()

    def _check_segments(self) -> None:
        names: set[str] = set()
        by_message: dict[int | None, list[tuple[int, int, int]]] = {}
        for index, segment in enumerate(self.segments):
            field = f"input.segments[{index}]"
            check_text(f"{field}.name", segment.name)
            if not segment.name or segment.name in names:
                raise InvalidRequestError(f"{field}.name", f"must be given and be unique, was {segment.name!r}")
            names.add(segment.name)
            text = self._text_with(segment, field)
            if not 0 <= segment.start < segment.end <= len(text):
                raise InvalidRequestError(
                    field,
                    f"start and end must lie in the text and hold at least one of its {len(text)} code points, "
                    f"were {segment.start} and {segment.end}",
                )
            by_message.setdefault(segment.message, []).append((segment.start, segment.end, index))
        for spans in by_message.values():
            spans.sort()
            for (_, end, first), (start, _, second) in pairwise(spans):
                if start < end:
                    raise InvalidRequestError(
                        f"input.segments[{second}]",
                        f"overlaps segment {self.segments[first].name!r}, which ends at {end}; "
                        "segments must not overlap",
                    )

    def _text_with(self, segment: Segment, field: str) -> str:
        """The text that a segment is a part of."""
        if self.prompt is not None:
            if segment.message is not None:
                raise InvalidRequestError(f"{field}.message", "must be left out with a raw prompt")
            return self.prompt
        if not self.messages:
            raise InvalidRequestError(field, "segments need a text: a raw prompt or messages, not prompt_ids")
        if segment.message is None or not 0 <= segment.message < len(self.messages):
            raise InvalidRequestError(
                f"{field}.message", f"must be an index into the {len(self.messages)} messages, was {segment.message}"
            )
        return self.messages[segment.message].content


def check_text(field: str, text: str) -> None:
    """Refuse text that cannot be encoded as UTF-8.

    Raises:
        InvalidRequestError: naming the code point of the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            field, f"holds a lone surrogate at code point {error.start}, which is not a character"
        ) from None
