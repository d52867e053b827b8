"""The position of what a chat has beside contents: definitions of tools, calls of tools, and reasoning.

A template writes them as JSON, as XML or in lines, so that their text in the prompt is not that of the request. As for
contents (`chat_template.py`), the template is run again with marks, around the texts inside them: names, descriptions,
arguments. The part of the prompt between the first and the last mark of an attachment is the attachment's, extended to
the JSON object around it, if that has no other attachment in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.chat_template import Message, Tools
from gradellm_engine.tokenization.marks import Marks, unused_prefix

MAX_RUNS = 8  # marked runs of the template for one request
MAX_RUN_CHARACTERS = 400_000  # rendered by all runs after the first
MARKED_TEXTS = 32  # of an attachment: the first, and as many of the last
MAX_BRACES = 8  # before an attachment, that may open the object around it
BRACE_DISTANCE = 400  # code points between such a brace and the attachment's first text

_DECODER = json.JSONDecoder(strict=False)


class Attachment(NamedTuple):
    """A definition, a call or reasoning.

    Attributes:
        tool: index of a defined tool, or None.
        message: index of the message that has the call or the reasoning, or None.
        call: index of the call in its message; None for reasoning.
    """

    tool: int | None = None
    message: int | None = None
    call: int | None = None


@dataclass(frozen=True)
class AttachmentSpan:
    """A part of the rendered text that comes from an attachment."""

    start: int
    end: int
    attachment: Attachment


Render = Callable[[Sequence[Mapping[str, Any]], Tools], str]
"""Renders messages, as templates read them, and tools. Raises InvalidRequestError."""


def place_attachments(
    messages: Sequence[Message], tools: Tools, text: str, render: Render
) -> tuple[list[AttachmentSpan], set[Attachment]]:
    """The spans of attachments in `text`, ascending and disjoint; and the attachments that could not be placed.

    `text` is what `render` makes of the messages and tools.
    Reasoning that the template leaves out, as most do, counts as placed.
    """
    attachments = [Attachment(tool=index) for index in range(len(tools))]
    for index, message in enumerate(messages):
        attachments += [Attachment(message=index)] if message.reasoning else []
        attachments += [Attachment(message=index, call=call) for call in range(len(message.tool_calls))]
    if not attachments:
        return [], set()
    renderer = _Renderer(messages, tools, text, render)
    chosen, marks = renderer.choose(attachments)
    spans = _spans(text, marks)
    placed = {span.attachment for span in spans}
    return spans, {each for each in attachments if each not in placed and not (each in chosen and each.call is None)}


class _Renderer:
    """Runs the template with marks in some attachments, at most `MAX_RUNS` times."""

    def __init__(self, messages: Sequence[Message], tools: Tools, text: str, render: Render) -> None:
        self._messages = [message.as_dict() for message in messages]
        self._tools, self._text, self._render = tools, text, render
        self._runs_left = max(1, min(MAX_RUNS, MAX_RUN_CHARACTERS // max(1, len(text))))
        self._prefix = unused_prefix([text])  # a mark elsewhere in the request would not reach the text

    def choose(self, attachments: Sequence[Attachment]) -> tuple[set[Attachment], list[tuple[int, Attachment]]]:
        """The attachments that can be marked together without a change of the text, and the marks."""
        marks = self._marks({*attachments})
        if marks is not None:
            return {*attachments}, marks
        chosen = self._bisect(attachments)
        return (chosen, self._marks(chosen) or []) if chosen else (set(), [])

    def _bisect(self, attachments: Sequence[Attachment]) -> set[Attachment]:
        if len(attachments) <= 1:
            return set()
        chosen: set[Attachment] = set()
        middle = len(attachments) // 2
        for half in (attachments[:middle], attachments[middle:]):
            if self._runs_left < 2:  # the last one is for all that are chosen
                break
            chosen |= {*half} if self._marks({*half}) is not None else self._bisect(half)
        return chosen

    def _marks(self, chosen: Collection[Attachment]) -> list[tuple[int, Attachment]] | None:
        """The marks in the text; None where they change the text, or no run is left."""
        if not self._runs_left:
            return None
        self._runs_left -= 1
        marks: Marks[Attachment] = Marks(self._prefix)
        tools = [
            {**tool, "function": _marked(tool["function"], Attachment(tool=index), marks)}
            if Attachment(tool=index) in chosen
            else tool
            for index, tool in enumerate(self._tools)
        ]
        messages = [self._marked_message(index, message, chosen, marks) for index, message in enumerate(self._messages)]
        try:
            taken = marks.take(self._render(messages, tools))
        except InvalidRequestError:  # a template that inspects texts may refuse marked ones
            return None
        return None if taken is None or taken[0] != self._text else taken[1]

    @staticmethod
    def _marked_message(
        index: int, message: Mapping[str, Any], chosen: Collection[Attachment], marks: Marks[Attachment]
    ) -> Mapping[str, Any]:
        made = dict(message)
        if (attachment := Attachment(message=index)) in chosen:
            made |= {name: _marked(message[name], attachment, marks) for name in ("reasoning_content", "reasoning")}
        if "tool_calls" in message:
            calls = enumerate(message["tool_calls"])
            made["tool_calls"] = [
                {**call, "function": _marked(call["function"], attachment, marks)}
                if (attachment := Attachment(message=index, call=number)) in chosen
                else call
                for number, call in calls
            ]
        return made


def _marked(value: Any, attachment: Attachment, marks: Marks[Attachment]) -> Any:  # noqa: ANN401 (any JSON value)
    """A copy of a JSON value with marks around its first and last texts."""
    number, count = -1, _count_texts(value)

    def mark(text: str) -> str:
        nonlocal number
        number += 1
        if MARKED_TEXTS <= number < count - MARKED_TEXTS:
            return text
        return marks.put(text, [(0, attachment), (len(text), attachment)])

    return _with_texts(value, mark)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 (any JSON value)
    """A copy with each text changed, names of members left. Nesting is bounded: see `bounded_json`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _with_texts(item, change) for name, item in value.items()}
    return [_with_texts(item, change) for item in value] if isinstance(value, list) else value


def _count_texts(value: object) -> int:
    if isinstance(value, str):
        return 1
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_count_texts, items))


def _spans(text: str, marks: Sequence[tuple[int, Attachment]]) -> list[AttachmentSpan]:
    """The texts of attachments whose marks stand together, extended to the JSON objects around them."""
    runs: list[tuple[int, int, Attachment]] = []
    for position, attachment in marks:
        if runs and runs[-1][2] == attachment:
            runs[-1] = (runs[-1][0], position, attachment)
        else:
            runs.append((position, position, attachment))
    found: list[AttachmentSpan] = []
    for index, (start, end, attachment) in enumerate(runs):
        after = runs[index + 1][0] if index + 1 < len(runs) else len(text)
        before = found[-1].end if found else 0
        start, end = (
            (start, end)
            if attachment.call is None and attachment.tool is None
            else _object_around(text, start, end, (before, after))
        )
        if before <= start < end:
            found.append(AttachmentSpan(start, end, attachment))
    return found


def _object_around(text: str, start: int, end: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """The outermost JSON object around a part of the text, between bounds; the part itself where there is none."""
    found, brace, first = (start, end), start, max(bounds[0], start - BRACE_DISTANCE)
    for _ in range(MAX_BRACES):
        brace = text.rfind("{", first, brace)
        if brace < 0:
            break
        try:
            _, last = _DECODER.raw_decode(text[brace : bounds[1]])
        except (ValueError, RecursionError):
            continue
        if brace + last >= end:
            found = (brace, brace + last)
    return found
