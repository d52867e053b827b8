"""A request's input: a raw prompt, messages or token ids, with named segments. It validates itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.template_options import TemplateOptions
from gradellm_engine.tokenization.tools import MAX_TOOLS, check_name, read_arguments, read_tools, segment_of


@dataclass(frozen=True)
class Segment:
    """A named part of the caller's text.

    Attributes:
        name: unique in an input.
        start: its first code point in the raw prompt, in the message's content, or in the text of token ids.
        end: one past its last code point.
        message: index of the message; None for a raw prompt and for token ids.
    """

    name: str
    start: int
    end: int
    message: int | None = None


@dataclass(frozen=True)
class MessageSpan:
    """The place of a message in the text of token ids.

    Attributes:
        role: the speaker's.
        start: its first code point.
        end: one past its last.
    """

    role: str
    start: int
    end: int


@dataclass(frozen=True)
class PromptInput:
    """A request's input: exactly one of a raw prompt, messages and token ids.

    Attributes:
        prompt: a raw prompt.
        messages: turns for the model's chat template.
        prompt_ids: token ids.
        segments: named parts of the text, which do not overlap.
        message_spans: with token ids, the places of messages, ascending and disjoint; without any, all is the user's.
        template: with messages, options of the chat template.
        tools: with messages, definitions of tools: see `tools.read_tools`. Each is a segment, `tool:NAME`.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    message_spans: tuple[MessageSpan, ...] = ()
    template: TemplateOptions = field(default_factory=TemplateOptions)
    tools: str = ""

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
            _check_message(f"input.messages[{index}]", message)
        if not self.messages and (options := [*self.template.set_fields, *(["tools"] if self.tools else [])]):
            raise InvalidRequestError(f"input.{options[0]}", "is for messages, which the chat template renders")
        self._check_spans()
        self._check_segments()

    def _check_spans(self) -> None:
        if self.message_spans and not self.prompt_ids:
            raise InvalidRequestError("input.message_spans", "are places in the text of prompt_ids; there are none")
        end = 0
        for index, span in enumerate(self.message_spans):
            field = f"input.message_spans[{index}]"
            check_text(f"{field}.role", span.role)
            if not span.role:
                raise InvalidRequestError(f"{field}.role", "must not be empty")
            if not end <= span.start <= span.end:
                raise InvalidRequestError(
                    field,
                    f"must ascend, and begin where the one before it ends ({end}) or later; was {span.start} to "
                    f"{span.end}",
                )
            end = span.end

    def _check_segments(self) -> None:
        tools = {segment_of(tool) for tool in read_tools("input.tools", self.tools)} if self.tools else set()
        names: set[str] = set()
        by_message: dict[int | None, list[tuple[int, int, int]]] = {}
        for index, segment in enumerate(self.segments):
            field = f"input.segments[{index}]"
            check_text(f"{field}.name", segment.name)
            if not segment.name or segment.name in names:
                raise InvalidRequestError(f"{field}.name", f"must be given and be unique, was {segment.name!r}")
            if segment.name in tools:
                raise InvalidRequestError(
                    f"{field}.name", f"{segment.name!r} is the segment of a tool's definition: choose another name"
                )
            names.add(segment.name)
            text = self._text_with(segment, field)
            if text is not None:
                check_span(field, segment.start, segment.end, len(text))
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

    def _text_with(self, segment: Segment, field: str) -> str | None:
        """The text that a segment is a part of; None where token ids have still to be decoded."""
        if not self.messages:
            if segment.message is not None:
                form = "prompt_ids" if self.prompt is None else "a raw prompt"
                raise InvalidRequestError(f"{field}.message", f"must be left out with {form}")
            return self.prompt
        if segment.message is None or not 0 <= segment.message < len(self.messages):
            raise InvalidRequestError(
                f"{field}.message", f"must be an index into the {len(self.messages)} messages, was {segment.message}"
            )
        return self.messages[segment.message].content


def _check_message(field: str, message: Message) -> None:
    """Refuse a message whose texts UTF-8 cannot encode, or whose calls of tools are not such."""
    for name in ("content", "tool_call_id", "name", "reasoning"):
        check_text(f"{field}.{name}", getattr(message, name))
    if len(message.tool_calls) > MAX_TOOLS:
        raise InvalidRequestError(
            f"{field}.tool_calls", f"{len(message.tool_calls):,} calls; the limit of a message is {MAX_TOOLS}"
        )
    for index, call in enumerate(message.tool_calls):
        where = f"{field}.tool_calls[{index}]"
        check_name(f"{where}.name", call.name)
        check_text(f"{where}.id", call.id)
        check_text(f"{where}.arguments", call.arguments)
        read_arguments(f"{where}.arguments", call.arguments)


def check_span(field: str, start: int, end: int, length: int) -> None:
    """Refuse a span that is empty, or outside of a text.

    Raises:
        InvalidRequestError: naming the field and the text's length.
    """
    if not 0 <= start < end <= length:
        raise InvalidRequestError(
            field,
            f"start and end must lie in the text and hold at least one of its {length} code points, were {start} and "
            f"{end}",
        )


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
