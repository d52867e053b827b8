"""Draws a stream of events on a terminal: for each word of the completion, the prompt as a heat map.

A word's row is the sum of its tokens' rows. Template and special tokens of the prompt are left out, and each word's
line has their share of the scores. Special tokens of the completion are not drawn.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING

from gradellm.explanation.words import Grouping, characters, is_written
from gradellm.rendering.heatmap import Passage, Span, heat_map, legend
from gradellm.rendering.terminal import isolated, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gradellm.models import Event, Finished, PromptToken, Started, Token
    from gradellm.rendering.terminal import Style

__all__ = ["columns_by_token", "draw", "draw_retention"]

Row = dict[int, float]
"""Scores by column."""


def draw(events: Iterable[Event], style: Style) -> Iterator[str]:
    """Draw the events of a stream as they arrive. Yields text for the terminal."""
    drawing: _Drawing | None = None
    for event in events:
        if event.started is not None:
            drawing = _Drawing(event.started, style)
        elif drawing is not None:
            yield from drawing.take(event)
    if drawing is not None:
        yield from drawing.end()


def draw_retention(started: Started, kept: Iterable[tuple[PromptToken, float]], pi: float, style: Style) -> str:
    """Draw the prompt with the keep probability of each token, as in the paper's figures 3 to 6."""
    indexes = {id(token): index for index, token in enumerate(started.prompt_tokens)}
    probs = {indexes[id(token)]: prob for token, prob in kept}
    tokens = f"{sum(probs.values()):.1f} of {len(probs)} tokens"
    title = f"{style.bold(f'π = {pi:g}')}  {style.dim(f'keep probabilities; {tokens} expected')}"
    return f"{title}\n{heat_map(_prompt_passages(started), probs, style)}"


class _Drawing:
    """The state of drawing one stream: tokens drawn, and words that are incomplete or lack rows."""

    def __init__(self, started: Started, style: Style) -> None:
        self.style = style
        self.settings = started.provenance.attribution
        self.passages = tuple(_prompt_passages(started))
        self.drawn: list[Token] = []
        self.scored_spans: list[Span] = []  # of drawn tokens that are sources themselves
        self.grouping = Grouping()
        self.waiting: deque[list[Token]] = deque()  # complete words
        self.rows: dict[int, Row] = {}
        self.not_selected: list[Token] = []  # of words without a selected token; they share a line
        self.num_words = 0
        self.signed = False
        self.finished: Finished | None = None

    def take(self, event: Event) -> Iterator[str]:
        if event.token is not None and self.settings is None:
            self.drawn.append(event.token)
            yield "\n".join(map(visible, event.token.text.split("\n")))  # without labels
        elif event.token is not None:
            self._enqueue(self.grouping.push(event.token))
        elif event.attribution is not None:
            self.rows[event.attribution.token_index] = event.attribution.by_column()
        elif event.finished is not None:
            self.finished = event.finished
            self._enqueue(self.grouping.finish())
        while self.waiting and (self.finished or all(map(self._is_complete, reversed(self.waiting[0])))):
            yield self._draw_word(self.waiting.popleft())

    def end(self) -> Iterator[str]:
        self._enqueue(self.grouping.finish())
        yield from map(self._draw_word, self.waiting)
        yield self._draw_not_selected()
        if self.settings is None:
            yield "\n"
        elif self.num_words > 1:
            yield f"{self.style.dim('in full:')} {_answer(self.drawn)}\n\n"
        if self.rows:
            yield legend(self.style, signed=self.signed)
        if self.finished is not None:
            yield self.style.dim(_summary(self.finished)) + "\n"

    def _is_complete(self, token: Token) -> bool:
        """Whether a token has its row, or will get none."""
        return token.index in self.rows or (self.settings is not None and not self.settings.explains(token.index))

    def _enqueue(self, word: list[Token]) -> None:
        if word:
            self.waiting.append(word)

    def _add_drawn(self, word: list[Token]) -> None:
        """Add a drawn word to the sources of later words."""
        self.drawn += word
        for token in word:
            start = token.start - self.drawn[0].start
            if token.source_index is not None:
                self.scored_spans.append(Span(start, start + token.end - token.start, token.source_index))

    def _completion_passages(self) -> Iterator[Passage]:
        """Yield the completion so far, if its tokens are scored."""
        if self.scored_spans:
            yield Passage("so far", "".join(token.text for token in self.drawn), tuple(self.scored_spans))

    def _draw_word(self, word: list[Token]) -> str:
        row: Row = {}
        for token in word:
            for column, score in self.rows.get(token.index, {}).items():
                row[column] = row.get(column, 0.0) + score
        passages = (*self.passages, *self._completion_passages())
        self._add_drawn(word)
        if all(token.special and not token.text for token in word):
            return ""  # such as an end of turn, which the summary mentions
        self.num_words += 1
        if self.settings is not None and not any(self.settings.explains(token.index) for token in word):
            self.not_selected += word
            return ""
        before, name = self._draw_not_selected(), self._name(word)
        if not row:
            return f"{before}{name}  {self.style.dim('not explained')}\n\n"
        self.signed = self.signed or any(score < 0 for score in row.values())
        summary = self.style.dim(_row_summary(row, passages))
        return f"{before}{name}  {summary}\n{heat_map(passages, row, self.style)}\n"

    def _draw_not_selected(self) -> str:
        """The words since the last drawn one that are not selected, in a line."""
        words, self.not_selected = self.not_selected, []
        return f"{self._name(words)}  {self.style.dim('not selected')}\n\n" if words else ""

    def _name(self, tokens: list[Token]) -> str:
        return self.style.bold(isolated(visible(_label(tokens))))


def _prompt_passages(started: Started) -> Iterator[Passage]:
    """Yield one passage per message, or one for a raw prompt, without template and special tokens."""
    columns = columns_by_token(started)
    parts = [
        (started.prompt_tokens[part.token_indexes[0]], part)
        for part in characters(started.prompt_text, started.prompt_tokens)
        if is_written(started.prompt_tokens[part.token_indexes[0]]) and part.end > part.start
    ]
    for message, group in groupby(parts, key=lambda pair: pair[0].message):
        pairs = list(group)
        start, end = min(part.start for _, part in pairs), max(part.end for _, part in pairs)
        spans = tuple(
            Span(part.start - start, part.end - start, column)
            for _, part in pairs
            for column in dict.fromkeys(column for index in part.token_indexes for column in columns.get(index, ()))
        )
        label = "" if message is None else pairs[0][0].role or ""
        yield Passage(label, started.prompt_text[start:end], spans)


def columns_by_token(started: Started) -> dict[int, list[int]]:
    """Return the columns of scores of each prompt token, by its index."""
    if not started.sources:
        return {index: [index] for index in range(len(started.prompt_tokens))}
    columns: dict[int, list[int]] = {}
    for column, source in enumerate(started.sources):
        for index in source.token_indexes:
            columns.setdefault(index, []).append(column)
    return columns


def _label(word: list[Token]) -> str:
    text = "".join(token.text for token in word)
    return text.strip() or text or "(a token without text)"


def _answer(tokens: list[Token]) -> str:
    text = "".join(token.text for token in tokens).strip()
    return "\n".join(isolated(visible(line)) for line in text.split("\n"))


def _row_summary(row: Row, passages: Iterable[Passage]) -> str:
    drawn = {span.column for passage in passages for span in passage.spans}
    finite = {column: score for column, score in row.items() if math.isfinite(score)}
    total = sum(map(abs, finite.values()))
    largest = max((finite[column] for column in finite.keys() & drawn), key=abs, default=0.0)
    elsewhere = sum(abs(score) for column, score in finite.items() if column not in drawn)
    return f"largest {largest:.3g}" + (
        f" · {elsewhere / total:.0%} on tokens not shown" if elsewhere >= 0.005 * total > 0 else ""
    )


def _summary(finished: Finished) -> str:
    reason = {
        "end_of_text": "the model ended its turn",
        "stop_text": f"met the stop text {isolated(visible(finished.stop))}",
        "max_new_tokens": "reached max_new_tokens",
        "end_of_completion": "the whole completion",
    }.get(finished.reason or "", "ended")
    timings = finished.timings
    seconds = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds + timings.attribution_seconds
    count = finished.usage.completion_tokens
    return f"{count} token{'' if count == 1 else 's'}, {reason}, {seconds:.2f} s"
