"""Messages rendered by the model's chat template, and where each message's words lie in the rendered text.

A template is a program: it may trim a content, rewrite it, leave parts of it out, say it twice, and write text of its
own that depends on it. So contents are not searched for. The template is run once more with marks inside the contents,
strings that nobody can guess; where the text without the marks is the text as it was, each mark shows the place of a
code point of a message:

    1. marks at both ends of a content's words, inside the white space around them (so that trimming changes nothing),
       and around tags such as <think> (so that what a template takes out between two tags takes its marks with it)
    2. where the text comes out different, fewer marks are tried, and then fewer messages, by halves
    3. the text between two neighbouring marks of a message is that message's words, if it stands there as it was sent

Messages that cannot be marked are unplaced: their words may stand in the text, and nobody can say where. All of it is
linear in the text: contents are looked through once, and the number of runs is bounded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.encoder import interruption_point

MAX_RUNS = 24  # of the template for one request
MAX_RUN_CHARACTERS = 400_000  # that runs after the third may render together
MAX_TAGS = 16  # of one content that get marks of their own
NUMBER_DIGITS = 8

_TAG = re.compile(r"<[^<>\s]{1,64}>")
_NUMBER = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}~")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Stretch:
    """A part of the rendered text that is one message's words.

    Attributes:
        start: its first code point in the text.
        end: one past its last.
        message: whose words they are.
        offset: its first code point in the message's content; None where the template rewrote the words.
    """

    start: int
    end: int
    message: int
    offset: int | None


@dataclass(frozen=True)
class Placement:
    """Where the messages' words lie in the rendered text.

    Attributes:
        stretches: those that are known, ascending; they do not overlap.
        unplaced: messages some of whose words may stand in the text where nobody can say.
    """

    stretches: tuple[Stretch, ...]
    unplaced: tuple[int, ...]


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The messages as the model's chat template renders them, up to where the model answers.

    Raises:
        InvalidRequestError: where there is no chat template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError("input.messages", "this model has no chat template; send a raw prompt instead")
    interruption_point.get()()
    try:
        rendered: Any = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise InvalidRequestError("input.messages", f"the model's chat template refuses them: {error}") from error
    return str(rendered)


def place(messages: Sequence[Message], text: str, tokenizer: PreTrainedTokenizerBase) -> Placement:
    """Where messages lie in `text`, which `render` made of them."""
    marking = _Marking(messages, text, tokenizer)
    by_message = [_ways(message.content) for message in messages]
    indexes = [index for index, ways in enumerate(by_message) if ways]
    chosen, marks = marking.choose(indexes, by_message) if indexes else ({}, [])
    if not chosen:
        return Placement((), tuple(indexes))
    stretches = list(_stretches(marks, messages, text, by_message))
    if any(messages[index].content != messages[index].content.strip() for index in chosen):
        stretches = _with_white_space(stretches, marks, marking.stripped_gaps(chosen), messages, text)
    partly = (index for index, offsets in chosen.items() if not _covers(offsets, messages[index].content))
    unplaced = sorted({*indexes} - chosen.keys() | {*partly})
    return Placement(tuple(stretches), tuple(unplaced))


@dataclass(frozen=True)
class _Mark:
    """A mark that was found: `place` in the rendered text stands for code point `offset` of a message's content."""

    place: int
    message: int
    offset: int


Offsets = tuple[int, ...]  # where a content is marked, ascending


def _ways(content: str) -> list[Offsets]:
    """Where to mark a content, the most telling way first; none for white space."""
    core = (len(content) - len(content.lstrip()), len(content.rstrip()))
    if core[0] >= core[1]:
        return []
    if "<" not in content:
        return [core]
    tags = [match.span() for match in _TAG.finditer(content)][: MAX_TAGS + 1]
    pieces = set(_pieces(content, tags, core)) if len(tags) <= MAX_TAGS else set()
    ways = [tuple(sorted({*pieces, *core})), tuple(sorted(pieces)), core]
    return [way for way in dict.fromkeys(ways) if way]


def _pieces(content: str, tags: Iterable[tuple[int, int]], core: tuple[int, int]) -> Iterable[int]:
    """Both ends of what lies between tags, without white space."""
    ends = [core[0], *(place for tag in tags for place in tag), core[1]]
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        words = content[start:end]
        if words.strip():
            yield start + len(words) - len(words.lstrip())
            yield start + len(words.rstrip())


def _covers(offsets: Offsets, content: str) -> bool:
    """Whether nothing but white space lies outside of the marks."""
    return not content[: offsets[0]].strip() and not content[offsets[-1] :].strip()


class _Marking:
    """Runs of the template with marks in some contents, as many as may be."""

    def __init__(self, messages: Sequence[Message], text: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._messages, self._text, self._tokenizer = messages, text, tokenizer
        self._runs_left = max(3, min(MAX_RUNS, MAX_RUN_CHARACTERS // max(1, len(text))))
        self._sign = self._unused_sign()

    def choose(
        self, indexes: Sequence[int], by_message: Sequence[Sequence[Offsets]]
    ) -> tuple[dict[int, Offsets], list[_Mark]]:
        """The messages that can be marked all at once, and how; and the marks."""
        for way in (0, -1):
            marked = {index: by_message[index][way] for index in indexes}
            if (marks := self.marks(marked)) is not None:
                return marked, marks
        chosen = self._by_halves(indexes, by_message)
        marks = self.marks(chosen)
        return ({}, []) if marks is None else (chosen, marks)

    def _by_halves(self, indexes: Sequence[int], by_message: Sequence[Sequence[Offsets]]) -> dict[int, Offsets]:
        if len(indexes) <= 1:
            ways: Iterable[dict[int, Offsets]] = ({index: way} for index in indexes for way in by_message[index])
            return next((way for way in ways if self.marks(way) is not None), {})
        halves = indexes[: len(indexes) // 2], indexes[len(indexes) // 2 :]
        chosen: dict[int, Offsets] = {}
        for half in halves:
            marked = {index: by_message[index][0] for index in half}
            chosen |= marked if self.marks(marked) is not None else self._by_halves(half, by_message)
        return chosen

    def marks(self, marked: Mapping[int, Offsets]) -> list[_Mark] | None:
        """The marks where they came out; None where the text differs with them, or no run is left."""
        found = self._run(marked, self._messages)
        return None if found is None or found[0] != self._text else found[1]

    def stripped_gaps(self, marked: Mapping[int, Offsets]) -> tuple[str, list[_Mark]] | None:
        """The text, and the marks in it, where contents come without the white space around them."""
        bare = [Message(message.role, message.content.strip()) for message in self._messages]
        leads = [len(message.content) - len(message.content.lstrip()) for message in self._messages]
        its = {index: tuple(offset - leads[index] for offset in offsets) for index, offsets in marked.items()}
        found = self._run(its, bare)
        if found is None:
            return None
        return found[0], [_Mark(mark.place, mark.message, mark.offset + leads[mark.message]) for mark in found[1]]

    def _run(self, marked: Mapping[int, Offsets], messages: Sequence[Message]) -> tuple[str, list[_Mark]] | None:
        """The text without the marks, and where they were."""
        if not marked or not self._runs_left:
            return None
        self._runs_left -= 1
        known: list[tuple[int, int]] = []
        contents = [message.content for message in messages]
        for index, offsets in marked.items():
            content, pieces = contents[index], []
            for start, end in pairwise((0, *offsets, len(content))):
                pieces.append(content[start:end])
                if len(pieces) <= len(offsets):
                    pieces[-1] += f"{self._sign}{len(known):0{NUMBER_DIGITS}d}~"
                    known.append((index, end))
            contents[index] = "".join(pieces)
        try:
            rendered = render([Message(m.role, c) for m, c in zip(messages, contents, strict=True)], self._tokenizer)
        except InvalidRequestError:  # a template that looks into contents may refuse marked ones
            return None
        first, *parts = rendered.split(self._sign)
        pieces, place, marks = [first], len(first), []
        for part in parts:
            if not _NUMBER.match(part) or int(part[:NUMBER_DIGITS]) >= len(known):
                return None
            marks.append(_Mark(place, *known[int(part[:NUMBER_DIGITS])]))
            pieces.append(part[NUMBER_DIGITS + 1 :])
            place += len(pieces[-1])
        return "".join(pieces), marks

    def _unused_sign(self) -> str:
        """What marks begin with. Digits survive a change of case, and the first character tells where they begin."""
        while True:
            sign = f"~{secrets.randbelow(10**40):040d}"
            if sign not in self._text and not any(sign in m.content or sign in m.role for m in self._messages):
                return sign


def _stretches(
    marks: Sequence[_Mark], messages: Sequence[Message], text: str, by_message: Sequence[Sequence[Offsets]]
) -> Iterable[Stretch]:
    """What lies between neighbouring marks of a message, where it is that message's words."""
    for first, second in pairwise(marks):
        if first.message != second.message or first.offset >= second.offset or first.place >= second.place:
            continue
        is_verbatim = text[first.place : second.place] == messages[first.message].content[first.offset : second.offset]
        if is_verbatim:
            yield Stretch(first.place, second.place, first.message, first.offset)
        elif (first.offset, second.offset) == by_message[first.message][-1]:  # all of a content, rewritten
            yield Stretch(first.place, second.place, first.message, None)


def _with_white_space(
    stretches: Sequence[Stretch],
    marks: Sequence[_Mark],
    bare: tuple[str, list[_Mark]] | None,
    messages: Sequence[Message],
    text: str,
) -> list[Stretch]:
    """Stretches with the white space around contents, where the template has kept it.

    Between two marks, the text with contents as they are has so much more than the text with contents without white
    space around them as was kept.
    """
    if bare is None or [(m.message, m.offset) for m in bare[1]] != [(m.message, m.offset) for m in marks]:
        return list(stretches)
    leads: dict[int, int] = {}  # kept white space before what begins here, and after what ends here
    trails: dict[int, int] = {}
    last = len(marks)
    for index in range(last + 1):
        before, after = (marks[i] if 0 <= i < last else None for i in (index - 1, index))
        gap = text[before.place if before else 0 : after.place if after else len(text)]
        bare_before, bare_after = (bare[1][i] if 0 <= i < last else None for i in (index - 1, index))
        own = bare[0][bare_before.place if bare_before else 0 : bare_after.place if bare_after else len(bare[0])]
        trail = "" if before is None else _outside(messages[before.message].content, before.offset)[1]
        lead = "" if after is None else _outside(messages[after.message].content, after.offset)[0]
        for kept_trail, kept_lead in ((trail, lead), ("", lead), (trail, ""), ("", "")):
            if gap == kept_trail + own + kept_lead:
                if before is not None and kept_trail:
                    trails[before.place] = len(kept_trail)
                if after is not None and kept_lead:
                    leads[after.place] = len(kept_lead)
                break
    return [
        Stretch(
            s.start - leads.get(s.start, 0),
            s.end + trails.get(s.end, 0),
            s.message,
            None if s.offset is None else s.offset - leads.get(s.start, 0),
        )
        for s in stretches
    ]


def _outside(content: str, offset: int) -> tuple[str, str]:
    """The white space that a content begins and ends with, as far as its words begin or end at `offset`."""
    lead, trail = content[:offset], content[offset:]
    return ("" if lead.strip() else lead), ("" if trail.strip() else trail)
