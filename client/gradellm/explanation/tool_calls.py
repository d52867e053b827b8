"""Where the calls of tools in a completion came from: for each name and argument, the parts of the conversation.

1. The completion's text is parsed; names and arguments have places in it, and so tokens.
2. The rows of a span's tokens are added up, by column.
3. Columns are added up by the part that they belong to: a tool's definition, a segment, a message, the template,
   or the completion so far. A part's share is its sum's magnitude divided by that of all columns.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gradellm.errors import InvalidExplanationError
from gradellm.explanation.queries import total_of
from gradellm.explanation.reasoning import completion_pieces
from gradellm.parsers.answer import AnswerParser
from gradellm.parsers.registry import CALL_PARSERS, call_parser, reasoning_parser
from gradellm.serialization import to_plain

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation
    from gradellm.models import PromptToken
    from gradellm.parsers.deltas import WrittenCall

__all__ = ["ArgumentOrigin", "CallSource", "ToolCallOrigin", "tool_calls"]

Kind = Literal["tool", "segment", "message", "template", "completion", "reasoning", "mixed"]
_Part = tuple[Kind, str, int | None]  # kind, label and message of a `CallSource`
TOOL = "tool:"  # begins the name of the segment of a tool's definition


@dataclass(frozen=True, slots=True)
class CallSource:
    """A part of the conversation, and its contribution to a call or an argument."""

    kind: Kind
    """A tool's definition, a named segment, the rest of a message, the chat template, the completion so far, reasoning
    in it, or a column of several of these."""
    label: str
    """The name of the tool or segment, or the message's role."""
    message: int | None
    """Index of the message that it is a part of."""
    score: float
    """The sum of its scores."""
    share: float
    """Its magnitude divided by the sum of the magnitudes of all scores, 0 to 1."""


@dataclass(frozen=True, slots=True)
class ArgumentOrigin:
    """Where one argument of a call came from."""

    name: str
    tokens: tuple[int, ...]
    """Indexes of the tokens of its value."""
    sources: tuple[CallSource, ...]
    """The largest first; empty if none of its tokens was explained."""


@dataclass(frozen=True, slots=True)
class ToolCallOrigin:
    """A call of a tool, and where its name and arguments came from."""

    index: int
    name: str
    arguments: str
    """JSON, as the model wrote it."""
    name_tokens: tuple[int, ...]
    """Indexes of the tokens of its name."""
    arguments_tokens: tuple[int, ...]
    """Indexes of the tokens of all arguments."""
    sources: tuple[CallSource, ...]
    """Of the name and the arguments together."""
    name_sources: tuple[CallSource, ...]
    values: tuple[ArgumentOrigin, ...]
    """Each argument."""

    def to_dict(self) -> dict[str, Any]:
        """Return dicts, lists, texts and numbers, for JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def tool_calls(
    explanation: Explanation,
    *,
    parser: str | None = None,
    reasoning: str = "qwen3",
    tools: Sequence[Mapping[str, Any]] = (),
    special_texts: Mapping[int, str] | None = None,
) -> tuple[ToolCallOrigin, ...]:
    """Return the calls of tools in a completion; malformed ones are none.

    `parser` names the form of calls, by default the model's; `reasoning` that of reasoning before them. `tools` are
    the definitions, by whose types qwen3_coder makes JSON. `special_texts` are the texts of special tokens that the
    prompt does not have, by id.

    Raises InvalidExplanationError for another parser, and if the model's is not known.
    """
    name = parser or explanation.provenance.model.tool_call_parser
    if name not in CALL_PARSERS:
        given = "the model's is not known" if not name else f"not {name!r}"
        raise InvalidExplanationError(f"parser: must be one of {', '.join(CALL_PARSERS)}; {given}")
    text, spans = completion_pieces(explanation.prompt_tokens, explanation.tokens, special_texts or {})
    calls = call_parser(name, tools)
    answers = AnswerParser(calls, reasoning_parser(reasoning, explanation.prompt_text, calls))
    answers.push(text)
    answers.finish()
    origins = _Origins(explanation, spans)
    return tuple(origins.of(call) for call in answers.answer().calls)


class _Origins:
    def __init__(self, explanation: Explanation, spans: Sequence[tuple[int, int, int]]) -> None:
        self._explanation, self._spans = explanation, spans
        self._starts, self._ends = [start for _, start, _ in spans], [end for *_, end in spans]
        self._parts = [self._part(column) for column in range(len(explanation.sources))]

    def of(self, call: WrittenCall) -> ToolCallOrigin:
        """Return a call with its sources."""
        name, arguments = self._tokens(*call.name_span), self._tokens(*call.arguments_span)
        values = [(value.name, self._tokens(value.start, value.end)) for value in call.values]
        return ToolCallOrigin(
            call.index,
            call.name,
            call.arguments,
            name,
            arguments,
            self._sources(tuple(sorted({*name, *arguments}))),
            self._sources(name),
            tuple(ArgumentOrigin(key, tokens, self._sources(tokens)) for key, tokens in values),
        )

    def _tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Return the tokens of a span of the completion's text, with the parts of their characters."""
        first = bisect_right(self._ends, start)
        while first and self._starts[first - 1] >= start:
            first -= 1
        return tuple(index for index, *_ in self._spans[first : bisect_left(self._starts, end)])

    def _sources(self, tokens: Sequence[int]) -> tuple[CallSource, ...]:
        """Return what some tokens came from, the largest first."""
        rows = [row for index in tokens if (row := self._explanation.row(index)) is not None]
        scores: dict[int, list[float]] = {}
        for row in rows:
            for column, score in row.by_column().items():
                scores.setdefault(column, []).append(score)
        sums = {column: total_of(each) for column, each in scores.items()}
        total = math.fsum(abs(score) for score in sums.values() if math.isfinite(score))
        parts: dict[_Part, list[float]] = {}
        for column, score in sums.items():
            parts.setdefault(self._parts[column], []).append(score)
        found = []
        for (kind, label, message), each in parts.items():
            score = total_of(each)
            found.append(CallSource(kind, label, message, score, abs(score) / total if total else 0.0))
        return tuple(sorted(found, key=lambda source: -abs(source.score)))

    def _part(self, column: int) -> _Part:
        """Return kind, label and message of the part that a column belongs to."""
        source = self._explanation.sources[column]
        if column >= self._explanation.num_prompt_columns:
            indexes = source.completion_indexes
            is_reasoning = indexes != () and self._explanation.reasoning.issuperset(indexes)
            return ("reasoning" if is_reasoning else "completion", "", None)
        found = {_part_of(self._explanation.prompt_tokens[index]) for index in source.token_indexes}
        return found.pop() if len(found) == 1 else ("mixed", source.label, None)


def _part_of(token: PromptToken) -> _Part:
    if token.is_definition:
        return ("tool", token.segment.removeprefix(TOOL), None)
    if token.segment:
        return ("segment", token.segment, token.message)
    if token.role == "template":
        return ("template", "", None)
    return ("message", token.role or "", token.message)
