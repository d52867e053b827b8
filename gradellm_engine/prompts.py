"""From a request's input to tokens that know where they come from.

Text is rendered and tokenised once; token ids are the truth from then on. Each token keeps its place in the rendered
text (Unicode code points), whose words it carries and which of the caller's segments it lies in. Nothing is ever
truncated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.text import IncrementalText
from gradellm_engine.words import prompt_words


class Role(StrEnum):
    """Whose words a token carries."""

    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    OTHER = "other"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Segment:
    """A named stretch of the caller's text: code points of a raw prompt, or of one message's content."""

    name: str
    start: int
    end: int
    message: int | None = None


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


@dataclass(frozen=True)
class PromptToken:
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
    """

    text: str
    tokens: tuple[PromptToken, ...]
    segments: tuple[str, ...]

    @property
    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]

    @cached_property
    def words(self) -> list[int]:
        """The word that each token belongs to, from 0: see `gradellm_engine.words`."""
        return prompt_words(self)


@dataclass(frozen=True)
class _Span:
    """A stretch of the rendered text that came from the caller."""

    start: int
    end: int
    role: Role
    message: int | None


def read_prompt(given: PromptInput, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Prompt:
    """Render and tokenise.

    Raises:
        InvalidRequestError: where there is no chat template, it refuses the messages, or an id is not in the
            vocabulary.
    """
    if given.prompt_ids:
        return _prompt_of_ids(given.prompt_ids, tokenizer, vocab_size)
    if given.prompt is not None:
        text, spans = given.prompt, [_Span(0, len(given.prompt), Role.USER, None)]
        contents: dict[int | None, int] = {None: 0}
    else:
        text, spans, contents = _render(given.messages, tokenizer)
    # The chat template writes the special tokens itself.
    encoded = tokenizer(
        text, add_special_tokens=given.prompt is not None, return_offsets_mapping=True, truncation=False, verbose=False
    )
    if not encoded["input_ids"]:
        raise InvalidRequestError("input", "has no tokens")
    check_embedded("input", encoded["input_ids"], vocab_size)
    segments = _place_segments(given.segments, contents)
    special = special_ids(tokenizer)
    tokens = []
    for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        anchor = _anchor(text, start, end)
        span = None if token_id in special or start == end else _containing(spans, anchor)
        segment = None if span is None else _containing(segments, anchor)
        tokens.append(
            PromptToken(
                id=token_id,
                text=text[start:end],
                start=start,
                end=end,
                role=Role.TEMPLATE if span is None else span.role,
                message=None if span is None else span.message,
                segment=None if segment is None else segment.name,
                special=token_id in special,
            )
        )
    return Prompt(text, tuple(tokens), tuple(segment.name for segment in segments))


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
    for token_id in ids:
        if token_id >= vocab_size:
            raise InvalidRequestError(
                field,
                f"holds token {token_id}, which the model does not know: its vocabulary ends at {vocab_size - 1}",
            )


def _prompt_of_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Prompt:
    check_token_ids("input.prompt_ids", ids, vocab_size)
    incremental = IncrementalText(lambda window: decode(tokenizer, window, skip_special_tokens=False))
    special = special_ids(tokenizer)
    pieces = [incremental.push(token_id) for token_id in ids]
    pieces[-1] += incremental.flush()
    tokens, start = [], 0
    for token_id, piece in zip(ids, pieces, strict=True):
        role = Role.TEMPLATE if token_id in special else Role.USER
        end = start + len(piece)
        tokens.append(PromptToken(token_id, piece, start, end, role, None, None, token_id in special))
        start = end
    return Prompt("".join(pieces), tuple(tokens), ())


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that are no text: those with a task of their own (BOS, EOS), and those that are only marked so.

    Templates' headers are often among the latter alone.
    """
    marked = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *marked])


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Token ids as text, without the tokenizer's cosmetic clean-up of spaces."""
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return str(text)


def _render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[_Span], dict[int | None, int]]:
    """The rendered text, where each message's words lie in it, and where code point 0 of each whole content is.

    A template may trim a content or rewrite it. Rendering once more with a marker in place of each content shows the
    template's own text between them, and so what became of each content.
    """
    text = _apply_template([(m.role, m.content) for m in messages], tokenizer)
    marked = _apply_template([(m.role, f"gradellm{i}content") for i, m in enumerate(messages)], tokenizer)
    pieces = re.split(r"gradellm(\d+)content", marked)  # template text and indexes of messages in turn
    places = _places_of_known(pieces, [m.content for m in messages], text) or _places_by_pattern(pieces, text)
    spans: list[_Span] = []
    contents: dict[int | None, int] = {}
    for index, (start, end) in sorted(places.items()):
        message = messages[index]
        role = Role(message.role) if message.role in set(Role) - {Role.TEMPLATE, Role.OTHER} else Role.OTHER
        spans.append(_Span(start, end, role, index))
        offset = message.content.find(text[start:end])
        if offset >= 0:
            contents[index] = start - offset
    return text, spans, contents


Places = dict[int, tuple[int, int]]  # first code point of each message's words, and one past their last


def _places_of_known(pieces: Sequence[str], contents: Sequence[str], text: str) -> Places:
    """Where contents lie that stand in the text as they were sent, or trimmed: sure, whatever the contents say."""
    position = len(pieces[0])
    places: Places = {}
    for index, after in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        forms = (contents[index], contents[index].strip())
        said = next((form for form in forms if text.startswith(form + after, position)), None)
        if said is None:
            return {}
        places.setdefault(index, (position, position + len(said)))
        position += len(said) + len(after)
    return places if text.startswith(pieces[0]) and position == len(text) else {}


def _places_by_pattern(pieces: Sequence[str], text: str) -> Places:
    """Where contents lie that the template rewrote: what is between its own texts. Empty where those differ too."""
    indexes: list[int] = []
    pattern = ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            pattern += re.escape(piece)
        elif int(piece) in indexes:  # a template that says a content twice
            pattern += f"(?:\\{indexes.index(int(piece)) + 1})"
        else:
            indexes.append(int(piece))
            pattern += "(.*?)"
    match = re.fullmatch(pattern, text, re.DOTALL)
    return {} if match is None else {index: match.span(group) for group, index in enumerate(indexes, start=1)}


def _apply_template(messages: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise InvalidRequestError("input.messages", "this model has no chat template; send a raw prompt instead")
    try:
        rendered: Any = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        raise InvalidRequestError("input.messages", f"the model's chat template refuses them: {error}") from error
    return str(rendered)


@dataclass(frozen=True)
class _PlacedSegment:
    start: int
    end: int
    name: str


def _place_segments(segments: Sequence[Segment], contents: dict[int | None, int]) -> list[_PlacedSegment]:
    """The segments in the rendered text, in their order there."""
    placed = []
    for index, segment in enumerate(segments):
        if segment.message not in contents:
            raise InvalidRequestError(
                f"input.segments[{index}].message",
                "the model's chat template rewrites this message, so the segment has no place in the prompt",
            )
        origin = contents[segment.message]
        placed.append(_PlacedSegment(origin + segment.start, origin + segment.end, segment.name))
    return sorted(placed, key=lambda segment: segment.start)


S = TypeVar("S", _Span, _PlacedSegment)


def _anchor(text: str, start: int, end: int) -> int:
    """The code point that says where a token belongs: its first that is not white space, else its first."""
    return next((i for i in range(start, end) if not text[i].isspace()), start)


def _containing(spans: Sequence[S], position: int) -> S | None:
    return next((span for span in spans if span.start <= position < span.end), None)
