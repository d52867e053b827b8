"""The model's chat template: messages rendered to text, and the position of each message's content in that text.

A template is a program: it may trim a content, rewrite it, drop parts of it, repeat it, or write text of its own that
depends on it. Searching for the content would therefore find wrong positions. Instead, the template is run again with
marks inside the contents, random strings that no text contains. Where the output without the marks equals the original
output, each mark shows the position of a code point of a message:

    1. Marks are put at both ends of a content, inside its surrounding white space (so that trimming changes nothing),
       and around tags such as <think> (so that a template that drops the text between two tags drops its marks, too).
    2. Where the output differs, fewer marks are tried, then fewer messages, by bisection.
    3. The text between two neighbouring marks of a message is that part of its content, if it is there verbatim.

Messages that cannot be marked are unplaced: parts of their content may be in the text, at unknown positions. The work
is linear in the text: each content is scanned once, and the number of runs is bounded.

Definitions of tools, calls and reasoning are placed in the same way, by `attachments.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.encoder import interruption_point
from gradellm_engine.tokenization.marks import Marks, unused_prefix
from gradellm_engine.tokenization.template_options import TemplateOptions
from gradellm_engine.tokenization.tools import ToolCall, read_arguments

MAX_RUNS = 24  # marked runs of the template for one request
MAX_RUN_CHARACTERS = 400_000  # rendered by all runs after the third
MAX_TAGS = 16  # of one content that are marked
MAX_ERROR_CHARACTERS = 300  # of a template's error

_TAG = re.compile(r"<[^<>\s]{1,64}>")
_TOOLS, _TOOL_CALLS = re.compile(r"\btools\b"), re.compile(r"\btool_calls\b")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: the speaker's.
        content: its text; empty where there is none beside calls.
        tool_calls: of an assistant.
        tool_call_id: of a tool's message: the call that it answers.
        name: the speaker's, of any role; of a tool's message, the tool's.
        reasoning: what an assistant thought before its content. Most templates leave it out of earlier turns.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The message as templates read it, with the names of OpenAI's API; without fields that are empty."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            functions = [
                {"name": c.name, "arguments": read_arguments("arguments", c.arguments)} for c in self.tool_calls
            ]
            made["tool_calls"] = [
                {"type": "function", "function": function, **({"id": call.id} if call.id else {})}
                for call, function in zip(self.tool_calls, functions, strict=True)
            ]
        if self.reasoning:
            made |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        return made | {
            name: value for name, value in (("tool_call_id", self.tool_call_id), ("name", self.name)) if value
        }


@dataclass(frozen=True)
class ContentSpan:
    """A part of the rendered text that comes from one message's content.

    Attributes:
        start: its first code point in the rendered text.
        end: one past its last code point.
        message: index of the message; -1 for a raw prompt and for a tool's definition.
        offset: its first code point in the message's content; None where the template rewrote the content.
    """

    start: int
    end: int
    message: int
    offset: int | None


@dataclass(frozen=True)
class Placement:
    """The positions of messages' contents in the rendered text.

    Attributes:
        spans: ascending and disjoint.
        unplaced: messages of whose content parts may be in the text at unknown positions.
    """

    spans: tuple[ContentSpan, ...]
    unplaced: tuple[int, ...]


Tools = Sequence[Mapping[str, Any]]


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    tools: Tools = (),
    options: TemplateOptions = TemplateOptions(),
) -> str:
    """The messages and tools rendered by the model's chat template, by default with its generation prompt.

    Raises:
        InvalidRequestError: where there is no chat template, it refuses the messages, or it has no tools or no calls.
    """
    return render_dicts([message.as_dict() for message in messages], tokenizer, tools, options)


def render_dicts(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    tools: Tools = (),
    options: TemplateOptions = TemplateOptions(),
) -> str:
    """As `render`, of messages as templates read them."""
    if not tokenizer.chat_template:
        raise InvalidRequestError("input.messages", "this model has no chat template; send a raw prompt instead")
    if tools and not has_tools(tokenizer):
        raise InvalidRequestError("input.tools", "the model's chat template has no tools: send the request without")
    for index, message in enumerate(messages):
        if message.get("tool_calls") and not has_tools(tokenizer, _TOOL_CALLS):
            raise InvalidRequestError(
                f"input.messages[{index}].tool_calls",
                "the model's chat template has no calls of tools: send what was said as content",
            )
    interruption_point.get()()
    try:
        rendered: Any = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, **options.arguments
        )
    except Exception as error:  # a template may raise anything
        why = str(error)[:MAX_ERROR_CHARACTERS]  # Transformers' may quote the whole prompt
        raise InvalidRequestError("input.messages", f"the model's chat template refuses them: {why}") from error
    return str(rendered)


def has_tools(tokenizer: PreTrainedTokenizerBase, name: re.Pattern[str] = _TOOLS) -> bool:
    """Whether the model's chat template reads tools, or another variable."""
    templates = tokenizer.chat_template
    found = templates.values() if isinstance(templates, Mapping) else [templates or ""]
    return any(name.search(template) for template in found)


def place_messages(
    messages: Sequence[Message],
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    tools: Tools = (),
    options: TemplateOptions = TemplateOptions(),
) -> Placement:
    """The positions of messages' contents in `text`, the output of `render` for them."""
    renderer = _MarkedRenderer(messages, text, lambda marked: render(marked, tokenizer, tools, options))
    layouts = [_mark_layouts(message.content) for message in messages]
    indexes = [index for index, layout in enumerate(layouts) if layout]
    chosen, marks = renderer.choose(indexes, layouts) if indexes else ({}, [])
    if not chosen:
        return Placement((), tuple(indexes))
    spans = list(_spans(marks, messages, text, layouts))
    if any(messages[index].content != messages[index].content.strip() for index in chosen):
        spans = _with_white_space(spans, marks, renderer.render_stripped(chosen), messages, text)
    partial = (index for index, offsets in chosen.items() if not _covers(offsets, messages[index].content))
    unplaced = sorted({*indexes} - chosen.keys() | {*partial})
    return Placement(tuple(spans), tuple(unplaced))


@dataclass(frozen=True)
class _Mark:
    """A mark in the rendered text: code point `position` of the text is code point `offset` of a message's content."""

    position: int
    message: int
    offset: int


Offsets = tuple[int, ...]  # of the marks in a content, ascending


def _mark_layouts(content: str) -> list[Offsets]:
    """Sets of marks to try in a content, the most informative first; none for white space."""
    core = (len(content) - len(content.lstrip()), len(content.rstrip()))
    if core[0] >= core[1]:
        return []
    if "<" not in content:
        return [core]
    tags = [match.span() for match in _TAG.finditer(content)][: MAX_TAGS + 1]
    around_tags = set(_offsets_around_tags(content, tags, core)) if len(tags) <= MAX_TAGS else set()
    layouts = [tuple(sorted({*around_tags, *core})), tuple(sorted(around_tags)), core]
    return [layout for layout in dict.fromkeys(layouts) if layout]


def _offsets_around_tags(content: str, tags: Iterable[tuple[int, int]], core: tuple[int, int]) -> Iterable[int]:
    """Both ends of each text between two tags, without its surrounding white space."""
    ends = [core[0], *(offset for tag in tags for offset in tag), core[1]]
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        words = content[start:end]
        if words.strip():
            yield start + len(words) - len(words.lstrip())
            yield start + len(words.rstrip())


def _covers(offsets: Offsets, content: str) -> bool:
    """Whether only white space lies outside of the marks."""
    return not content[: offsets[0]].strip() and not content[offsets[-1] :].strip()


class _MarkedRenderer:
    """Runs the template with marks in some contents, at most `MAX_RUNS` times."""

    def __init__(
        self, messages: Sequence[Message], text: str, render_messages: Callable[[Sequence[Message]], str]
    ) -> None:
        self._messages, self._text, self._render_messages = messages, text, render_messages
        self._runs_left = max(3, min(MAX_RUNS, MAX_RUN_CHARACTERS // max(1, len(text))))
        self._mark_prefix = unused_prefix([text, *(part for m in messages for part in (m.role, m.content))])

    def choose(
        self, indexes: Sequence[int], layouts: Sequence[Sequence[Offsets]]
    ) -> tuple[dict[int, Offsets], list[_Mark]]:
        """Layouts of the messages that can be marked together, by message; and the marks in the text."""
        for option in (0, -1):
            marked = {index: layouts[index][option] for index in indexes}
            if (marks := self.marks(marked)) is not None:
                return marked, marks
        chosen = self._bisect(indexes, layouts)
        marks = self.marks(chosen)
        return ({}, []) if marks is None else (chosen, marks)

    def _bisect(self, indexes: Sequence[int], layouts: Sequence[Sequence[Offsets]]) -> dict[int, Offsets]:
        """Layouts that leave the text unchanged, found by halving the messages that are marked together."""
        if len(indexes) <= 1:
            options: Iterable[dict[int, Offsets]] = ({index: layout} for index in indexes for layout in layouts[index])
            return next((option for option in options if self.marks(option) is not None), {})
        halves = indexes[: len(indexes) // 2], indexes[len(indexes) // 2 :]
        chosen: dict[int, Offsets] = {}
        for half in halves:
            marked = {index: layouts[index][0] for index in half}
            chosen |= marked if self.marks(marked) is not None else self._bisect(half, layouts)
        return chosen

    def marks(self, marked: Mapping[int, Offsets]) -> list[_Mark] | None:
        """The marks in the text; None where they change the text, or no run is left."""
        rendered = self._render(marked, self._messages)
        return None if rendered is None or rendered[0] != self._text else rendered[1]

    def render_stripped(self, marked: Mapping[int, Offsets]) -> tuple[str, list[_Mark]] | None:
        """The text of contents that are stripped of surrounding white space, and the marks in it."""
        stripped = [replace(message, content=message.content.strip()) for message in self._messages]
        leads = [len(message.content) - len(message.content.lstrip()) for message in self._messages]
        shifted = {index: tuple(offset - leads[index] for offset in offsets) for index, offsets in marked.items()}
        rendered = self._render(shifted, stripped)
        if rendered is None:
            return None
        text, marks = rendered
        return text, [_Mark(mark.position, mark.message, mark.offset + leads[mark.message]) for mark in marks]

    def _render(self, marked: Mapping[int, Offsets], messages: Sequence[Message]) -> tuple[str, list[_Mark]] | None:
        """The text of marked messages without the marks, and the marks; None where no run is left or the run fails."""
        if not marked or not self._runs_left:
            return None
        self._runs_left -= 1
        marks: Marks[tuple[int, int]] = Marks(self._mark_prefix)  # owned by message and offset
        contents = [message.content for message in messages]
        for index, offsets in marked.items():
            contents[index] = marks.put(contents[index], [(offset, (index, offset)) for offset in offsets])
        marked_messages = [replace(m, content=c) for m, c in zip(messages, contents, strict=True)]
        try:
            taken = marks.take(self._render_messages(marked_messages))
        except InvalidRequestError:  # a template that inspects contents may refuse marked ones
            return None
        return taken and (taken[0], [_Mark(position, *owner) for position, owner in taken[1]])


def _spans(
    marks: Sequence[_Mark], messages: Sequence[Message], text: str, layouts: Sequence[Sequence[Offsets]]
) -> Iterable[ContentSpan]:
    """The texts between neighbouring marks of a message that come from its content."""
    for first, second in pairwise(marks):
        if first.message != second.message or first.offset >= second.offset or first.position >= second.position:
            continue
        start, end = first.position, second.position
        if text[start:end] == messages[first.message].content[first.offset : second.offset]:
            yield ContentSpan(start, end, first.message, first.offset)
        elif (first.offset, second.offset) == layouts[first.message][-1]:  # a whole content, rewritten
            yield ContentSpan(start, end, first.message, None)


def _with_white_space(
    spans: Sequence[ContentSpan],
    marks: Sequence[_Mark],
    stripped: tuple[str, list[_Mark]] | None,
    messages: Sequence[Message],
    text: str,
) -> list[ContentSpan]:
    """Spans with the white space around contents, where the template has kept it.

    The text between two marks is compared with the same text rendered from stripped contents: the difference is the
    white space that the template has kept.

    Args:
        spans: without white space around contents.
        marks: in `text`.
        stripped: text and marks from stripped contents; None where that run failed.
        messages: the messages.
        text: the rendered text.
    """
    if stripped is None or [(m.message, m.offset) for m in stripped[1]] != [(m.message, m.offset) for m in marks]:
        return list(spans)
    leads: dict[int, int] = {}  # length of the kept white space before a span, by the span's start
    trails: dict[int, int] = {}  # and after a span, by its end
    last = len(marks)
    for index in range(last + 1):
        before, after = (marks[i] if 0 <= i < last else None for i in (index - 1, index))
        gap = _between(text, before, after)
        stripped_gap = _between(stripped[0], *(stripped[1][i] if 0 <= i < last else None for i in (index - 1, index)))
        trail = "" if before is None else _outside(messages[before.message].content, before.offset)[1]
        lead = "" if after is None else _outside(messages[after.message].content, after.offset)[0]
        for kept_trail, kept_lead in ((trail, lead), ("", lead), (trail, ""), ("", "")):
            if gap == kept_trail + stripped_gap + kept_lead:
                if before is not None and kept_trail:
                    trails[before.position] = len(kept_trail)
                if after is not None and kept_lead:
                    leads[after.position] = len(kept_lead)
                break
    return [
        ContentSpan(
            s.start - leads.get(s.start, 0),
            s.end + trails.get(s.end, 0),
            s.message,
            None if s.offset is None else s.offset - leads.get(s.start, 0),
        )
        for s in spans
    ]


def _between(text: str, before: _Mark | None, after: _Mark | None) -> str:
    """The text between two marks; None is an end of the text."""
    return text[before.position if before else 0 : after.position if after else len(text)]


def _outside(content: str, offset: int) -> tuple[str, str]:
    """The content before and after `offset`, each empty where it is not all white space."""
    lead, trail = content[:offset], content[offset:]
    return ("" if lead.strip() else lead), ("" if trail.strip() else trail)
