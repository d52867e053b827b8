"""Traces a selection of the completion through the model's own words back to the prompt.

`push_back.py` has the mathematics. Here an explanation becomes rows, and the resulting flow parts of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError
from gradellm.explanation import queries
from gradellm.explanation.reasoning import REASONING
from gradellm.explanation.tracing.push_back import Flow, Reason, TokenRow, push_back
from gradellm.explanation.words import Word
from gradellm.serialization import to_document

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.queries import By, Selection
    from gradellm.models import Attribution

__all__ = ["REASONS", "EarlierWord", "Trace", "TracedPart", "Unexplained", "trace"]

_FORMAT = "gradellm.trace"
_VERSION = 1

REASONS: Mapping[Reason, str] = {
    "no_positive_score": "rows without a positive score",
    "not_finite": "rows with infinite or undefined scores",
    "other_target": "rows that explain another token than the generated one",
    "top_k_sources": "scores that top_k_sources left out, each counted as large as it can be",
    "forced": "forced tokens, which have no row",
    "interrupted": "tokens whose row had not come when the stream ended",
    "not_explained": "tokens that were not explained",
}
"""What each reason of an unexplained share means."""


@dataclass(frozen=True, slots=True)
class TracedPart:
    """A part of the prompt with its shares of a selection, 0 to 1."""

    label: str
    """As in `Part`."""
    share: float
    """Its share in all: direct, and through earlier words of the completion."""
    direct: float
    """Its share in one step, as in the selection's own rows."""
    reasoning: float
    """The part of `share` that came through reasoning, such as a <think> block."""
    columns: tuple[int, ...]
    """Its columns in `sources`."""
    written: bool
    """Whether any of it is neither template nor a special token."""

    @property
    def through(self) -> float:
        """Its share through earlier words of the completion."""
        return max(0.0, self.share - self.direct)


@dataclass(frozen=True, slots=True)
class EarlierWord:
    """A word of the completion that shares came through."""

    word: Word
    share: float
    """What came through it. Words on one path count the same share, so that these do not add up."""
    segment: str
    """"reasoning", or "completion"."""


@dataclass(frozen=True, slots=True)
class Unexplained:
    """A share that does not arrive in the prompt, and why."""

    reason: Reason
    """A key of `REASONS`."""
    share: float
    token_indexes: tuple[int, ...]
    """The completion's tokens where it stays."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A selection's shares of the prompt, direct and through the model's own words.

    The shares of `parts` and `unexplained` sum to 1.
    """

    selection: str
    """The selected text."""
    token_indexes: tuple[int, ...]
    """The selected tokens."""
    by: By
    """What a part is."""
    parts: tuple[TracedPart, ...]
    """The parts of the prompt, in the order of its text."""
    words: tuple[EarlierWord, ...]
    """The earlier words that shares came through, in the order of the text."""
    reasoning: float
    """What came through reasoning, unexplained shares included."""
    unexplained: float
    """The share that does not arrive in the prompt."""
    reasons: tuple[Unexplained, ...]
    """Its reasons, the largest first."""

    def top(self, n: int = 5, *, written: bool = True) -> tuple[TracedPart, ...]:
        """Return the n parts with the largest shares.

        With `written`, the default, without template and special tokens.
        """
        parts = [part for part in self.parts if part.share > 0 and (part.written or not written)]
        return tuple(sorted(parts, key=lambda part: -part.share)[:n])

    def to_json(self) -> str:
        """Serialize the trace as one line of JSON, with the fields of these classes."""
        return to_document(self, _FORMAT, _VERSION)

    def __str__(self) -> str:
        from gradellm.explanation.tracing.trace_view import draw_trace

        return draw_trace(self)

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        """Print the trace as text in a notebook."""
        printer.text("Trace(...)" if cycle else str(self))  # type: ignore[attr-defined]


def trace(explanation: Explanation, selection: Selection = None, by: By = "word") -> Trace:
    """Return where a selection came from, followed through generated tokens back to the prompt.

    Each selected token starts with an equal share. Raises InvalidExplanationError for an unknown selection or `by`, or
    if the scores are not those of the whole prefix, by token or word.
    """
    _check(explanation)
    indexes = queries.selected_tokens(explanation, selection)
    if all(explanation.row(index) is None for index in indexes):
        raise InvalidExplanationError("no token of the selection was explained")
    groups = queries.groups(explanation, by, range(explanation.num_prompt_columns))
    words = {index: number for number, word in enumerate(explanation.words) for index in word.token_indexes}
    last = max(indexes)
    flow = push_back(
        dict.fromkeys(indexes, 1 / len(set(indexes))),
        _Rows(explanation, frozenset(indexes)),
        num_columns=explanation.num_prompt_columns,
        groups={index: words.get(index, -1 - index) for index in range(last + 1)},
        members=explanation.reasoning,
    )
    tokens = {token.index: token for token in explanation.tokens}
    return Trace(
        "".join(tokens[index].text for index in sorted(set(indexes))),
        tuple(sorted(set(indexes))),
        by,
        tuple(_part(explanation, flow, label, columns) for label, columns in groups),
        tuple(_words(explanation, flow)),
        flow.passed_members,
        math.fsum(flow.unexplained.values()),
        _reasons(flow),
    )


def _check(explanation: Explanation) -> None:
    settings = explanation.provenance.attribution
    if settings is None:
        raise InvalidExplanationError("trace: the completion was not explained; leave out attribution=None")
    if settings.sources != "prefix":
        raise InvalidExplanationError(
            "trace: the scores are those of the prompt alone, and a trace needs the tokens generated before, too; "
            "explain with sources='prefix' (--sources prefix)"
        )
    if settings.resolution == "segment":
        raise InvalidExplanationError(
            "trace: resolution='segment' has one score for all generated tokens; "
            "explain with resolution='token' or 'word'"
        )


class _Rows:
    """Makes the row of each token, by its index, from attribution rows."""

    def __init__(self, explanation: Explanation, selected: Collection[int]) -> None:
        self._explanation, self._selected = explanation, selected
        self._ids = {token.index: token.id for token in explanation.tokens}
        self._num_prompt_columns = explanation.num_prompt_columns
        self._first = explanation.tokens[0].index
        self._by_token = not explanation.started.sources  # each generated token has a column of its own
        self._num_columns: dict[int, int] = {}  # before each token
        count = self._num_prompt_columns + (self._first if self._by_token else 0)
        for token in explanation.tokens:
            self._num_columns[token.index] = count
            column = count if self._by_token or token.source_index is None else token.source_index
            count = max(count, column + 1)

    def __call__(self, index: int) -> TokenRow:
        """Return the token's row; without scores, and with the reason, if it cannot be followed."""
        row = self._explanation.row(index)
        if row is None:
            return TokenRow(reason=self._why_no_row(index))
        if not all(map(math.isfinite, row.scores)):
            return TokenRow(reason="not_finite")
        if index not in self._selected and self._ids.get(index, row.target_token_id) != row.target_token_id:
            return TokenRow(reason="other_target")
        scores = row.by_column()
        prompt, num_prompt_columns = row.scores, self._num_prompt_columns
        if row.source_indexes:
            prompt = tuple(scores.get(column, 0.0) for column in range(num_prompt_columns))
        generated: dict[int, float] = {}
        missing: dict[Reason, float] = {}
        for column, score in scores.items():
            if column >= num_prompt_columns and score > 0:
                tokens = self._tokens_of(column, index)
                generated |= dict.fromkeys(tokens, score / max(1, len(tokens)))
                if not tokens:  # words of forced tokens
                    missing["forced"] = missing.get("forced", 0.0) + score
        if omitted := self._omitted(row):
            missing["top_k_sources"] = omitted
        return TokenRow(prompt[:num_prompt_columns], generated, missing)

    def _tokens_of(self, column: int, before: int) -> list[int]:
        """Return the tokens of a generated column that precede a token."""
        if self._by_token:
            return [column - self._num_prompt_columns]
        return [index for index in self._explanation.sources[column].completion_indexes if index < before]

    def _omitted(self, row: Attribution) -> float:
        """Return a bound on the sum of the scores that top_k_sources left out; none exceeds the smallest one kept."""
        if not row.source_indexes:
            return 0.0
        num_columns = self._num_columns.get(row.token_index, self._num_prompt_columns + row.token_index)
        return max(0, num_columns - len(row.scores)) * min(map(abs, row.scores))

    def _why_no_row(self, index: int) -> Reason:
        if index < self._first:
            return "forced"
        attributions = self._explanation.attributions
        is_late = not attributions or index > attributions[-1].token_index
        return "interrupted" if self._explanation.finished is None and is_late else "not_explained"


def _part(explanation: Explanation, flow: Flow, label: str, columns: tuple[int, ...]) -> TracedPart:
    share, direct, reasoning = (
        math.fsum(values[column] for column in columns) for values in (flow.shares, flow.direct, flow.through_members)
    )
    written = any(queries.is_written(explanation, column) for column in columns)
    return TracedPart(label, share, direct, reasoning, columns, written)


def _words(explanation: Explanation, flow: Flow) -> Iterator[EarlierWord]:
    for number, word in enumerate(explanation.words):
        if share := flow.entered.get(number):
            is_reasoning = explanation.reasoning.issuperset(word.token_indexes)
            yield EarlierWord(word, share, REASONING if is_reasoning else queries.COMPLETION)


def _reasons(flow: Flow) -> tuple[Unexplained, ...]:
    tokens: dict[Reason, list[tuple[int, float]]] = {}
    for (reason, index), share in flow.unexplained.items():
        if share > 0:
            tokens.setdefault(reason, []).append((index, share))
    found = (
        Unexplained(reason, math.fsum(share for _, share in stays), tuple(sorted(index for index, _ in stays)))
        for reason, stays in tokens.items()
    )
    return tuple(sorted(found, key=lambda item: -item.share))
