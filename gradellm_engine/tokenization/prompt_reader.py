"""From a request's input to a `Prompt`: rendering, tokenising, and placing tokens in messages and segments.

Text is rendered and tokenised once; from then on its token ids are the input. Nothing is ever truncated.

The work of reading an input is linear in its size and bounded by `PromptLimits`: counts and lengths are checked before
anything is rendered, decoded or tokenised, tokens are counted before they are placed, and all of them are placed in one
vectorised step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.errors import InvalidRequestError, TokenizerError
from gradellm_engine.tokenization import chat_template
from gradellm_engine.tokenization.attachments import AttachmentSpan, place_attachments
from gradellm_engine.tokenization.chat_template import ContentSpan, Message, Placement, Tools
from gradellm_engine.tokenization.detokenizer import IncrementalDetokenizer
from gradellm_engine.tokenization.encoder import Array, Encoding, TextEncoder, TooManyTokensError, interruption_point
from gradellm_engine.tokenization.prompt import Prompt, PromptToken, Role
from gradellm_engine.tokenization.prompt_input import PromptInput, check_span
from gradellm_engine.tokenization.prompt_limits import PromptLimits
from gradellm_engine.tokenization.tools import read_tools, segment_of

IDS_PER_CHECK = 1024  # decoded between two calls of the interruption point


def read_prompt(
    prompt_input: PromptInput, encoder: TextEncoder, vocab_size: int, limits: PromptLimits | None = None
) -> Prompt:
    """The prompt of an input, rendered and tokenised.

    Raises:
        InvalidRequestError: where the input exceeds the limits, the chat template is missing or refuses the messages,
            or a token id is not in the vocabulary.
    """
    if limits is not None:
        limits.check(prompt_input)
    if prompt_input.prompt_ids:
        return _prompt_of_ids(prompt_input, encoder, vocab_size)
    messages, is_raw = prompt_input.messages, prompt_input.prompt is not None
    options = prompt_input.template
    tools = read_tools("input.tools", prompt_input.tools) if prompt_input.tools else []
    text = prompt_input.prompt
    if text is None:
        text = chat_template.render(messages, encoder.tokenizer, tools, options)
    if limits is not None:
        limits.check_length("input", len(text))
    # The chat template writes the special tokens itself.
    encoding = encode("input", encoder, text, add_special_tokens=is_raw, max_tokens=limits.tokens if limits else None)
    if not len(encoding.ids):
        raise InvalidRequestError("input", "has no tokens")
    _check_embedded("input", encoding.ids, vocab_size)
    interruption_point.get()()
    if is_raw:
        placement = Placement((ContentSpan(0, len(text), -1, 0),), ())
        segments = [_PlacedSegment(s.start, s.end, s.name) for s in prompt_input.segments]
    else:
        placement = chat_template.place_messages(messages, text, encoder.tokenizer, tools, options)
        segments = _place_segments(prompt_input, placement)
        attached, unplaced = place_attachments(
            messages,
            tools,
            text,
            lambda *marked: chat_template.render_dicts(marked[0], encoder.tokenizer, marked[1], options),
        )
        placement, definitions = _with_attachments(placement, attached, tools)
        segments += definitions
        lost = {each.message for each in unplaced if each.message is not None}
        placement = Placement(placement.spans, tuple(sorted({*placement.unplaced, *lost})))
    segments.sort(key=lambda segment: (segment.start, segment.end))
    interruption_point.get()()
    return Prompt(
        text,
        tuple(_place_tokens(text, encoding, encoder.special_ids, messages, placement.spans, segments)),
        tuple(dict.fromkeys(segment.name for segment in segments)),
        placement.unplaced,
        next((index for index in placement.unplaced if messages[index].role == Role.USER), None),
        is_raw,
    )


def encode(
    field: str, encoder: TextEncoder, text: str, *, add_special_tokens: bool, max_tokens: int | None = None
) -> Encoding:
    """The tokens of a request's text.

    Raises:
        InvalidRequestError: naming the field, where there are too many tokens, or the tokenizer fails on the text.
    """
    try:
        return encoder.encode(text, add_special_tokens=add_special_tokens, max_tokens=max_tokens)
    except TooManyTokensError as error:
        count = f"{'' if error.is_all else 'more than '}{error.count:,}"
        raise InvalidRequestError(field, f"has {count} tokens; the limit is {max_tokens:,}: shorten it") from None
    except TokenizerError as error:
        raise InvalidRequestError(field, f"{error}; send another text, or token ids") from None


def _place_tokens(
    text: str,
    encoding: Encoding,
    special_ids: frozenset[int],
    messages: Sequence[Message],
    spans: Sequence[ContentSpan],
    segments: Sequence[_PlacedSegment],
    *,
    has_added: bool = True,
) -> Iterable[PromptToken]:
    """The tokens with role, message and segment, by the position of their first character that is not white space.

    With `has_added`, a token without text was added by the tokenizer; else it is a part of the next character.
    """
    anchors = _anchors(text, encoding)
    is_special = np.isin(encoding.ids, np.fromiter(special_ids, np.int64, len(special_ids)))
    span_of = _interval_of(anchors, [s.start for s in spans], [s.end for s in spans])
    span_of[is_special | (has_added & (encoding.starts == encoding.ends))] = -1
    segment_of = _interval_of(anchors, [s.start for s in segments], [s.end for s in segments])
    segment_of[span_of < 0] = -1
    roles = [_role_of(message.role) for message in messages]
    without_message = Role.SYSTEM if messages else Role.USER  # a tool's definition, or raw text
    columns = (encoding.ids, encoding.starts, encoding.ends, span_of, segment_of, is_special)
    for token_id, start, end, span, segment, special in zip(*(c.tolist() for c in columns), strict=True):
        message = None if span < 0 or spans[span].message < 0 else spans[span].message
        yield PromptToken(  # by position: keywords take twice as long
            token_id,
            text[start:end],
            start,
            end,
            Role.TEMPLATE if span < 0 else without_message if message is None else roles[message],
            message,
            None if segment < 0 else segments[segment].name,
            special,
        )


def _role_of(name: str) -> Role:
    return Role(name) if name in set(Role) - {Role.TEMPLATE, Role.OTHER} else Role.OTHER


def _anchors(text: str, encoding: Encoding) -> Array:
    """The code point by which each token is placed: its first that is not white space, else its first. [T]"""
    if not text:
        return encoding.starts
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_word = np.ones(len(points) + 1, bool)
    is_word[:-1] = ~(_IS_SPACE[np.minimum(points, len(_IS_SPACE) - 1)])
    next_word = np.where(is_word, np.arange(len(is_word)), len(is_word))
    next_word = np.minimum.accumulate(next_word[::-1])[::-1]
    return np.where(next_word[encoding.starts] < encoding.ends, next_word[encoding.starts], encoding.starts)


_IS_SPACE: NDArray[np.bool_] = np.array([chr(point).isspace() for point in range(0x3002)])  # none is beyond


def _interval_of(positions: Array, starts: Sequence[int], ends: Sequence[int]) -> Array:
    """Index of the interval that contains each position, -1 for none; intervals ascend and are disjoint. [T]"""
    if not starts:
        return np.full(len(positions), -1)
    index = np.searchsorted(np.asarray(starts), positions, side="right") - 1
    return np.where((index >= 0) & (positions < np.asarray(ends)[index]), index, -1)


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
    """Refuse tokens without an embedding: a tokenizer may have more tokens than its model.

    Raises:
        InvalidRequestError: naming the first such token.
    """
    _check_embedded(field, np.asarray(ids, np.int64), vocab_size)


def _check_embedded(field: str, ids: Array, vocab_size: int) -> None:
    unknown = ids[ids >= vocab_size]
    if len(unknown):
        raise InvalidRequestError(
            field,
            f"holds token {unknown[0]}, which the model has no embedding for: its vocabulary ends at {vocab_size - 1}",
        )


def _prompt_of_ids(prompt_input: PromptInput, encoder: TextEncoder, vocab_size: int) -> Prompt:
    """The prompt of token ids; without message spans, all tokens that are not special are the user's."""
    check_token_ids("input.prompt_ids", prompt_input.prompt_ids, vocab_size)
    pieces = _pieces(prompt_input.prompt_ids, encoder)
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    messages = [Message(span.role, "") for span in prompt_input.message_spans]
    spans = [ContentSpan(s.start, s.end, index, None) for index, s in enumerate(prompt_input.message_spans)]
    if spans and spans[-1].end > len(text):
        raise InvalidRequestError(
            f"input.message_spans[{len(spans) - 1}].end", f"is {spans[-1].end}; the text has {len(text)} code points"
        )
    for index, segment in enumerate(prompt_input.segments):
        check_span(f"input.segments[{index}]", segment.start, segment.end, len(text))
    segments = sorted((_PlacedSegment(s.start, s.end, s.name) for s in prompt_input.segments), key=lambda s: s.start)
    placed = _place_tokens(
        text,
        Encoding(np.asarray(prompt_input.prompt_ids, np.int64), starts, ends),
        encoder.special_ids,
        messages,
        spans or [ContentSpan(0, len(text) + 1, -1, None)],
        segments,
        has_added=False,
    )
    return Prompt(text, tuple(placed), tuple(segment.name for segment in segments))


def _pieces(ids: Sequence[int], encoder: TextEncoder) -> list[str]:
    """The text that each token id adds: none for the first parts of a character."""
    detokenizer = IncrementalDetokenizer(lambda window: encoder.decode(window, skip_special_tokens=False))
    pieces = []
    try:
        for index, token_id in enumerate(ids):
            if index % IDS_PER_CHECK == 0:
                interruption_point.get()()
            pieces.append(detokenizer.push(token_id))
        pieces[-1] += detokenizer.flush()
    except TokenizerError as error:
        raise InvalidRequestError("input.prompt_ids", str(error)) from None
    return pieces


@dataclass(frozen=True)
class _PlacedSegment:
    """A segment, or a part of one, by its code points in the rendered text."""

    start: int
    end: int
    name: str


def _with_attachments(
    placement: Placement, attached: Sequence[AttachmentSpan], tools: Tools
) -> tuple[Placement, list[_PlacedSegment]]:
    """The placement with tools, calls and reasoning that contents leave room for; and the segments of the tools."""
    spans, segments = list(placement.spans), []
    ends = [0, *(span.end for span in placement.spans)]
    starts = [*(span.start for span in placement.spans), None]
    for each in attached:
        index = bisect_right(ends, each.start) - 1
        following = starts[index]
        if following is not None and each.end > following:
            continue
        tool, message = each.attachment.tool, each.attachment.message
        spans.append(ContentSpan(each.start, each.end, -1 if message is None else message, None))
        if tool is not None:
            segments.append(_PlacedSegment(each.start, each.end, segment_of(tools[tool])))
    return Placement(tuple(sorted(spans, key=lambda span: span.start)), placement.unplaced), segments


def _place_segments(prompt_input: PromptInput, placement: Placement) -> list[_PlacedSegment]:
    """Segments of messages by their position in the rendered text."""
    spans_of: dict[int, list[ContentSpan]] = {}
    for span in placement.spans:
        if span.offset is not None:
            spans_of.setdefault(span.message, []).append(span)
    placed: list[_PlacedSegment] = []
    for index, segment in enumerate(prompt_input.segments):
        message = -1 if segment.message is None else segment.message
        covered: list[tuple[int, int]] = []
        for span in spans_of.get(message, ()):
            offset = span.offset or 0
            start, end = max(segment.start, offset), min(segment.end, offset + span.end - span.start)
            if start < end:
                covered.append((start, end))
                placed.append(_PlacedSegment(span.start + start - offset, span.start + end - offset, segment.name))
        content, position = prompt_input.messages[message].content, segment.start
        for start, end in [*sorted(covered), (segment.end, segment.end)]:
            if content[position:start].strip():
                raise InvalidRequestError(
                    f"input.segments[{index}].message",
                    f"the model's chat template rewrites message {message} or leaves parts of it out: "
                    f"{content[position:start][:40]!r} of this segment is not in the rendered prompt",
                )
            position = max(position, end)
        if not covered:  # white space that the template trimmed: a segment without tokens
            placed.append(_PlacedSegment(0, 0, segment.name))
    return placed
