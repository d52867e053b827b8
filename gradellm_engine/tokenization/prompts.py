"""From a request's input to tokens that know where they come from.

Text is rendered and tokenised once; token ids are the truth from then on. Each token keeps its place in the rendered
text (Unicode code points), whose words it carries and which of the caller's segments it lies in. Nothing is ever
truncated.

What a request costs before it is refused or taken is linear in its size and bounded by `PromptLimits`: counts and
lengths are checked before anything is rendered, decoded or tokenised, tokens are counted before they are placed, and
places are found for all tokens at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.errors import InvalidRequestError, TokenizerError
from gradellm_engine.tokenization import chat_template
from gradellm_engine.tokenization.chat_template import Message, Placement, Stretch
from gradellm_engine.tokenization.detokenizer import IncrementalText
from gradellm_engine.tokenization.encoder import Array, Encoding, TextEncoder, TooManyTokensError, interruption_point
from gradellm_engine.tokenization.words import prompt_words


class Role(StrEnum):
    """Whose words a token carries."""

    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    OTHER = "other"


@dataclass(frozen=True)
class Segment:
    """A named stretch of the caller's text: code points of a raw prompt, or of one message's content."""

    name: str
    start: int
    end: int
    message: int | None = None


@dataclass(frozen=True)
class PromptLimits:
    """What an input may be at most, known without reading it.

    Attributes:
        tokens: tokens of a prompt.
        characters: code points of a prompt as text, the template's own included: no text that is longer fits.
        messages: messages of a conversation: the chat template makes some tokens of each.
    """

    tokens: int
    characters: int
    messages: int

    @classmethod
    def of(cls, encoder: TextEncoder, max_tokens: int) -> PromptLimits:
        """The limits of prompts of at most so many tokens."""
        return cls(max_tokens, max_tokens * encoder.longest_token, max(1, max_tokens // tokens_a_message(encoder)))

    @property
    def segments(self) -> int:
        """Segments: one a token."""
        return self.tokens

    def check_counts(self, *, num_ids: int = 0, num_messages: int = 0, num_segments: int = 0) -> None:
        """Refuse an input by its counts.

        Raises:
            InvalidRequestError: naming the field, the count and the limit.
        """
        self._check_count("input.prompt_ids", num_ids, self.tokens, "token ids")
        self._check_count("input.messages", num_messages, self.messages, "messages")
        self._check_count("input.segments", num_segments, self.segments, "segments")

    def check(self, given: PromptInput) -> None:
        """Refuse an input by its counts and lengths.

        Raises:
            InvalidRequestError: naming the field and the limit.
        """
        self.check_counts(
            num_ids=len(given.prompt_ids), num_messages=len(given.messages), num_segments=len(given.segments)
        )
        if given.prompt is not None:
            self.check_length("input.prompt", len(given.prompt))
        self.check_length("input.messages", sum(len(m.role) + len(m.content) for m in given.messages))
        self.check_length("input.segments", sum(len(segment.name) for segment in given.segments))

    def check_length(self, field: str, num_characters: int) -> None:
        """Refuse text that is longer than any prompt that fits.

        Raises:
            InvalidRequestError: naming the limit.
        """
        if num_characters > self.characters:
            raise InvalidRequestError(
                field,
                f"{num_characters:,} characters; the limit is {self.characters:,}, which is {self.tokens:,} tokens of "
                "the longest token's characters each: shorten the text",
            )

    def _check_count(self, field: str, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise InvalidRequestError(
                field, f"{count:,} {what}; the limit is {limit:,}, as a prompt has at most {self.tokens:,} tokens"
            )


def tokens_a_message(encoder: TextEncoder) -> int:
    """Tokens that the chat template makes of a message of one letter, at least 1."""

    def count(num_turns: int) -> int:
        turns = [Message(role, "a") for _ in range(num_turns) for role in ("user", "assistant")]
        return len(encoder.encode(chat_template.render(turns, encoder.tokenizer), add_special_tokens=False).ids)

    if not encoder.tokenizer.chat_template:
        return 1
    try:
        return max(1, (count(4) - count(1)) // 6)
    except (InvalidRequestError, TokenizerError):
        return 1


@dataclass(frozen=True)
class PromptInput:
    """What a caller sends: exactly one of a raw prompt, messages and token ids; segments of it may have names."""

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        given = {
            "input.prompt": self.prompt is not None,
            "input.messages": bool(self.messages),
            "input.prompt_ids": bool(self.prompt_ids),
        }
        names = [name for name, present in given.items() if present]
        if len(names) != 1:
            said = f"{' and '.join(names)} were given" if names else "none was given"
            raise InvalidRequestError("input", f"give exactly one of {', '.join(given)}; {said}")
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
        by_text: dict[int | None, list[tuple[int, int, int]]] = {}
        for index, segment in enumerate(self.segments):
            field = f"input.segments[{index}]"
            check_text(f"{field}.name", segment.name)
            if not segment.name or segment.name in names:
                raise InvalidRequestError(f"{field}.name", f"must be given and be unique, was {segment.name!r}")
            names.add(segment.name)
            text = self._text_of(segment, field)
            if not 0 <= segment.start < segment.end <= len(text):
                raise InvalidRequestError(
                    field,
                    f"start and end must lie in the text and hold at least one of its {len(text)} code points, "
                    f"were {segment.start} and {segment.end}",
                )
            by_text.setdefault(segment.message, []).append((segment.start, segment.end, index))
        for spans in by_text.values():
            spans.sort()
            for (_, end, first), (start, _, second) in pairwise(spans):
                if start < end:
                    raise InvalidRequestError(
                        f"input.segments[{second}]",
                        f"overlaps segment {self.segments[first].name!r}, which ends at {end}; "
                        "segments must not overlap",
                    )

    def _text_of(self, segment: Segment, field: str) -> str:
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
    """Refuse text that has no UTF-8 form.

    Raises:
        InvalidRequestError: naming the place of the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            field, f"holds a lone surrogate at code point {error.start}, which is no character"
        ) from None


class PromptToken(NamedTuple):
    """A token of the prompt.

    Attributes:
        id: its id.
        text: its text in the prompt; empty for a token that the tokenizer added.
        start: its first code point in the prompt's text.
        end: one past its last. Tokens that share a character overlap.
        role: whose words it carries.
        message: the message it belongs to, None for template tokens and raw prompts.
        segment: the segment it lies in, if any.
        special: whether it is one of the tokenizer's special tokens.
    """

    id: int
    text: str
    start: int
    end: int
    role: Role
    message: int | None
    segment: str | None
    special: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it.

    Attributes:
        text: what the tokens were made from, chat template included.
        tokens: its tokens, at least one.
        segments: the names of the caller's segments, in their order in the text.
        unplaced_messages: messages that the chat template rewrote so that nobody can say which of its tokens are their
            words; such tokens count as the template's.
        unplaced_user_message: the first of them that is the user's, if any.
        is_raw_text: whether the tokenizer added its own first token, as it does to a raw prompt.
    """

    text: str
    tokens: tuple[PromptToken, ...]
    segments: tuple[str, ...]
    unplaced_messages: tuple[int, ...] = ()
    unplaced_user_message: int | None = None
    is_raw_text: bool = False

    @property
    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]

    @cached_property
    def words(self) -> list[int]:
        """The word that each token belongs to, from 0: see `gradellm_engine.tokenization.words`."""
        return prompt_words(self)

    def check_user_text(self, field: str) -> None:
        """Refuse what depends on which tokens are the user's own text, where nobody can say, or there are none.

        Raises:
            InvalidRequestError: naming the field, with the reason.
        """
        if self.unplaced_user_message is not None:
            raise InvalidRequestError(
                field,
                "user: which tokens are the user's own text is not known: the model's chat template rewrites message "
                f"{self.unplaced_user_message}, which has no place in the prompt: choose another value",
            )
        if all(token.role is not Role.USER or token.special for token in self.tokens):
            raise InvalidRequestError(
                field, "user: the prompt has no token of the user's own text; choose another value"
            )


def read_prompt(
    given: PromptInput, encoder: TextEncoder, vocab_size: int, limits: PromptLimits | None = None
) -> Prompt:
    """Render and tokenise.

    Raises:
        InvalidRequestError: where it is larger than the limits, there is no chat template, it refuses the messages, or
            an id is not in the vocabulary.
    """
    if limits is not None:
        limits.check(given)
    if given.prompt_ids:
        return _prompt_of_ids(given.prompt_ids, encoder, vocab_size)
    is_raw = given.prompt is not None
    text = given.prompt if given.prompt is not None else chat_template.render(given.messages, encoder.tokenizer)
    if limits is not None:
        limits.check_length("input", len(text))
    # The chat template writes the special tokens itself.
    encoding = encode("input", encoder, text, add_special_tokens=is_raw, max_tokens=limits.tokens if limits else None)
    if not len(encoding.ids):
        raise InvalidRequestError("input", "has no tokens")
    _check_embedded("input", encoding.ids, vocab_size)
    interruption_point.get()()
    if is_raw:
        placement = Placement((Stretch(0, len(text), -1, 0),), ())
        segments = [_PlacedSegment(s.start, s.end, s.name) for s in given.segments]
    else:
        placement = chat_template.place(given.messages, text, encoder.tokenizer)
        segments = _place_segments(given, placement)
    segments.sort(key=lambda segment: (segment.start, segment.end))
    interruption_point.get()()
    return Prompt(
        text,
        tuple(_placed_tokens(text, encoding, encoder.special_ids, given.messages, placement.stretches, segments)),
        tuple(dict.fromkeys(segment.name for segment in segments)),
        placement.unplaced,
        next((index for index in placement.unplaced if given.messages[index].role == Role.USER), None),
        is_raw,
    )


@dataclass(frozen=True)
class PromptTail:
    """An end of a prompt, from a token on.

    Attributes:
        text: its text.
        ids: its tokens.
        add_special_tokens: whether the tokenizer's own first token is one of them.
    """

    text: str
    ids: list[int]
    add_special_tokens: bool


def prompt_tails(prompt: Prompt) -> Iterable[PromptTail]:
    """Ends of a prompt, longer and longer, the whole one last: as text to read a completion after.

    An end alone may get a space in front from the tokenizer, as a whole text does: then it is tried without its own.
    """
    num_tokens = TAIL_TOKENS
    while num_tokens < len(prompt.tokens):
        first = prompt.tokens[-num_tokens]
        ids = prompt.ids[-num_tokens:]
        yield PromptTail(prompt.text[first.start :], ids, add_special_tokens=False)
        if prompt.text[first.start : first.start + 1] == " ":
            yield PromptTail(prompt.text[first.start + 1 :], ids, add_special_tokens=False)
        num_tokens *= 8
    yield PromptTail(prompt.text, prompt.ids, add_special_tokens=True)
    yield PromptTail(prompt.text, prompt.ids, add_special_tokens=False)


TAIL_TOKENS = 16


def encode(
    field: str, encoder: TextEncoder, text: str, *, add_special_tokens: bool, max_tokens: int | None = None
) -> Encoding:
    """A text's tokens, errors named by the request's field.

    Raises:
        InvalidRequestError: where they are too many, or the tokenizer fails on the text.
    """
    try:
        return encoder.encode(text, add_special_tokens=add_special_tokens, max_tokens=max_tokens)
    except TooManyTokensError as error:
        count = f"{'' if error.is_all else 'more than '}{error.count:,}"
        raise InvalidRequestError(field, f"has {count} tokens; the limit is {max_tokens:,}: shorten it") from None
    except TokenizerError as error:
        raise InvalidRequestError(field, f"{error}; send another text, or token ids") from None


def _placed_tokens(
    text: str,
    encoding: Encoding,
    special_ids: frozenset[int],
    messages: Sequence[Message],
    stretches: Sequence[Stretch],
    segments: Sequence[_PlacedSegment],
) -> Iterable[PromptToken]:
    """The tokens, each with whose words it carries: where its first character that is not white space lies."""
    anchors = _anchors(text, encoding)
    is_special = np.isin(encoding.ids, np.fromiter(special_ids, np.int64, len(special_ids)))
    its_stretch = _containing(anchors, [s.start for s in stretches], [s.end for s in stretches])
    its_stretch[is_special | (encoding.starts == encoding.ends)] = -1
    its_segment = _containing(anchors, [s.start for s in segments], [s.end for s in segments])
    its_segment[its_stretch < 0] = -1
    roles = [_role_of(message.role) for message in messages]
    columns = (encoding.ids, encoding.starts, encoding.ends, its_stretch, its_segment, is_special)
    for token_id, start, end, stretch, segment, special in zip(*(c.tolist() for c in columns), strict=True):
        message = None if stretch < 0 or not messages else stretches[stretch].message
        yield PromptToken(  # by position: keywords take twice as long
            token_id,
            text[start:end],
            start,
            end,
            Role.TEMPLATE if stretch < 0 else Role.USER if message is None else roles[message],
            message,
            None if segment < 0 else segments[segment].name,
            special,
        )


def _role_of(said: str) -> Role:
    return Role(said) if said in set(Role) - {Role.TEMPLATE, Role.OTHER} else Role.OTHER


def _anchors(text: str, encoding: Encoding) -> Array:
    """The code point that says where a token belongs: its first that is not white space, else its first. [T]"""
    if not text:
        return encoding.starts
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_word = np.ones(len(points) + 1, bool)
    is_word[:-1] = ~(_IS_SPACE[np.minimum(points, len(_IS_SPACE) - 1)])
    next_word = np.where(is_word, np.arange(len(is_word)), len(is_word))
    next_word = np.minimum.accumulate(next_word[::-1])[::-1]
    return np.where(next_word[encoding.starts] < encoding.ends, next_word[encoding.starts], encoding.starts)


_IS_SPACE: NDArray[np.bool_] = np.array([chr(point).isspace() for point in range(0x3002)])  # none is beyond


def _containing(places: Array, starts: Sequence[int], ends: Sequence[int]) -> Array:
    """Which of some intervals, ascending and apart, holds each place; -1 for none. [T]"""
    if not starts:
        return np.full(len(places), -1)
    index = np.searchsorted(np.asarray(starts), places, side="right") - 1
    return np.where((index >= 0) & (places < np.asarray(ends)[index]), index, -1)


def check_token_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that are not in the vocabulary.

    Raises:
        InvalidRequestError: naming the first such id.
    """
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{field}[{index}]", f"{token_id} is not a token id; the vocabulary has ids 0 to {vocab_size - 1}"
            )


def check_embedded(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse text whose tokens the model has no embedding for: a tokenizer may know more tokens than its model.

    Raises:
        InvalidRequestError: naming the first such token.
    """
    _check_embedded(field, np.asarray(ids, np.int64), vocab_size)


def _check_embedded(field: str, ids: Array, vocab_size: int) -> None:
    unknown = ids[ids >= vocab_size]
    if len(unknown):
        raise InvalidRequestError(
            field,
            f"holds token {unknown[0]}, which the model does not know: its vocabulary ends at {vocab_size - 1}",
        )


def _prompt_of_ids(ids: Sequence[int], encoder: TextEncoder, vocab_size: int) -> Prompt:
    check_token_ids("input.prompt_ids", ids, vocab_size)
    incremental = IncrementalText(lambda window: encoder.decode(window, skip_special_tokens=False))
    special = encoder.special_ids
    pieces = []
    try:
        for index, token_id in enumerate(ids):
            if index % CHECKED_IDS == 0:
                interruption_point.get()()
            pieces.append(incremental.push(token_id))
        pieces[-1] += incremental.flush()
    except TokenizerError as error:
        raise InvalidRequestError("input.prompt_ids", str(error)) from None
    tokens, start = [], 0
    for token_id, piece in zip(ids, pieces, strict=True):
        role = Role.TEMPLATE if token_id in special else Role.USER
        end = start + len(piece)
        tokens.append(PromptToken(token_id, piece, start, end, role, None, None, token_id in special))
        start = end
    return Prompt("".join(pieces), tuple(tokens), ())


CHECKED_IDS = 1024  # that are decoded between two looks at whether anybody still waits


@dataclass(frozen=True)
class _PlacedSegment:
    start: int
    end: int
    name: str


def _place_segments(given: PromptInput, placement: Placement) -> list[_PlacedSegment]:
    """Where segments of messages lie in the rendered text."""
    known: dict[int, list[Stretch]] = {}
    for stretch in placement.stretches:
        if stretch.offset is not None:
            known.setdefault(stretch.message, []).append(stretch)
    placed: list[_PlacedSegment] = []
    for index, segment in enumerate(given.segments):
        message = -1 if segment.message is None else segment.message
        covered: list[tuple[int, int]] = []
        for stretch in known.get(message, ()):
            offset = stretch.offset or 0
            start, end = max(segment.start, offset), min(segment.end, offset + stretch.end - stretch.start)
            if start < end:
                covered.append((start, end))
                placed.append(
                    _PlacedSegment(stretch.start + start - offset, stretch.start + end - offset, segment.name)
                )
        content, at = given.messages[message].content, segment.start
        for start, end in [*sorted(covered), (segment.end, segment.end)]:
            if content[at:start].strip():
                raise InvalidRequestError(
                    f"input.segments[{index}].message",
                    f"the model's chat template rewrites message {message} or leaves parts of it out, so the segment "
                    f"has no place in the prompt: {content[at:start][:40]!r} does not stand there as it was sent",
                )
            at = max(at, end)
        if not covered:  # white space, which the template took away: a source without tokens
            placed.append(_PlacedSegment(0, 0, segment.name))
    return placed
