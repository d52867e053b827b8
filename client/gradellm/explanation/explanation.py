"""A completion with the attribution of its tokens: the events of one stream, collected."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError
from gradellm.explanation import queries
from gradellm.explanation.validation import check_explanation
from gradellm.explanation.words import Word, prompt_words, words
from gradellm.models import Attribution, Event, Finished, PromptToken, Provenance, Source, Started, Token
from gradellm.serialization import MalformedError, from_document, to_document

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradellm.explanation.queries import By, Part, Selection
    from gradellm.rendering.terminal import ColorMode, Theme

__all__ = ["Collector", "Explanation"]

_FORMAT = "gradellm.explanation"
_VERSION = 1


@dataclass(frozen=True)
class Explanation:
    """A completion and why: which parts of the prompt each of its tokens came from.

    It prints as its text; `scores`, `sources` and `matrix()` have the attribution.
    """

    started: Started
    """How the request was understood."""
    tokens: tuple[Token, ...]
    """The completion's tokens; those that the request forced are not among them."""
    attributions: tuple[Attribution, ...]
    """As sent, by `token_index`. Forced tokens can have one."""
    finished: Finished | None
    """Why the completion ended, and what it took. None where the events broke off before."""

    def __post_init__(self) -> None:
        check_explanation(self)

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Explanation:
        """Collect the events of one stream, or its beginning.

        Raises InvalidExplanationError where they are not in a stream's order.
        """
        collector = Collector()
        for event in events:
            collector.add(event)
        return collector.explanation()

    def events(self) -> Iterator[Event]:
        """Yield the events that it was made of, each attribution as early as can be."""
        yield Event(started=self.started)
        rows = deque(self.attributions)
        for token in self.tokens:
            yield Event(token=token)
            while rows and rows[0].token_index <= token.index:
                yield Event(attribution=rows.popleft())
        for row in rows:
            yield Event(attribution=row)
        if self.finished is not None:
            yield Event(finished=self.finished)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """The completion's text."""
        return "".join(token.text for token in self.tokens)

    @property
    def prompt_text(self) -> str:
        """The text that the prompt's tokens were made from, chat template included."""
        return self.started.prompt_text

    @property
    def prompt_tokens(self) -> tuple[PromptToken, ...]:
        """The prompt's tokens."""
        return self.started.prompt_tokens

    @property
    def provenance(self) -> Provenance:
        """All that it takes to compute the same again."""
        return self.started.provenance

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """What the columns of scores stand for: the prompt's tokens, words or segments, then generated tokens."""
        prompt = self._prompt_sources
        completion: dict[int, list[Token]] = {}
        for token in self.tokens:
            if token.source_index is not None:
                completion.setdefault(token.source_index, []).append(token)
        last = max((*completion, *(_last_column(row) for row in self.attributions)), default=-1)
        behind = []
        for column in range(len(prompt), last + 1):
            parts = completion.get(column, [])  # none for a forced token, which is not sent back
            text = "".join(token.text for token in parts)
            label = text.strip() if self.started.sources else text  # as the prompt's words and tokens have it
            behind.append(Source(label, (), tuple(token.index for token in parts)))
        return (*prompt, *behind)

    @property
    def num_prompt_columns(self) -> int:
        """How many of `sources` are parts of the prompt; the others are generated tokens."""
        return len(self._prompt_sources)

    @cached_property
    def _prompt_sources(self) -> tuple[Source, ...]:
        if self.started.sources:
            return self.started.sources
        return tuple(Source(token.text, (index,)) for index, token in enumerate(self.prompt_tokens))

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words of the completion, as the engine tells them: with punctuation, without white space."""
        return tuple(words(self.tokens))

    @cached_property
    def prompt_words(self) -> tuple[tuple[str, int], ...]:
        """For each token of the prompt the word that it belongs to, and that word's first code point."""
        return prompt_words(self.prompt_text, self.prompt_tokens)

    @cached_property
    def drawn(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The columns of scores as they are drawn, labelled: most alone, those that share a character together."""
        return tuple(queries.drawn(self))

    @cached_property
    def drawn_places(self) -> tuple[int, ...]:
        """For each column of `sources` its place in `drawn`."""
        return tuple(place for place, (_, columns) in enumerate(self.drawn) for _ in columns)

    def row(self, index: int) -> Attribution | None:
        """Return the attribution of the token at that place in the completion; None where it was not explained."""
        return self._rows.get(index)

    @cached_property
    def _rows(self) -> dict[int, Attribution]:
        return {row.token_index: row for row in self.attributions}

    @cached_property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        """One row a token, in the order of `tokens`: its raw scores. A token that was not explained has an empty row.

        A row has one score a column of `sources`, as many as there are before its token; with top_k_sources one score
        for each of the same row of `source_indexes`.
        """
        return tuple(row.scores if (row := self._rows.get(token.index)) else () for token in self.tokens)

    @cached_property
    def source_indexes(self) -> tuple[tuple[int, ...], ...]:
        """With top_k_sources: one row a token, the columns of its scores. Else empty rows."""
        return tuple(row.source_indexes if (row := self._rows.get(token.index)) else () for token in self.tokens)

    def matrix(self) -> NDArray[np.float64]:
        """Return the scores as a numpy array, [tokens, sources]. NaN where a token has no score. Needs numpy."""
        import numpy as np

        matrix = np.full((len(self.tokens), len(self.sources)), np.nan)
        for values, scores, columns in zip(matrix, self.scores, self.source_indexes, strict=True):
            values[list(columns) or slice(len(scores))] = scores
        return matrix

    # What people ask: `gradellm.explanation.queries` says how it is answered.

    def attribution_of(self, selection: Selection = None) -> tuple[float, ...]:
        """Return a score for each of `sources`: the sum over the tokens of a selection.

        A selection is a word, a token's place, a range of places, or a text in the completion; None for all of it.
        """
        return queries.attribution_of(self, selection)

    def parts(self, by: By = "segment", selection: Selection = None) -> tuple[Part, ...]:
        """Return what each "segment", "role", "message", "word" or "source" contributed, in the order of the text."""
        return queries.parts(self, by, selection)

    def top_sources(
        self, selection: Selection = None, *, n: int = 5, by: By = "word", written: bool = True
    ) -> tuple[Part, ...]:
        """Return the n parts that contributed most to a selection, the largest by magnitude first.

        With `written`, the default, only those of what people wrote: no template, no special tokens.
        """
        return queries.top_sources(self, selection, n=n, by=by, written=written)

    def led_to(self, source: Sequence[int] | int | str) -> tuple[tuple[Word, float], ...]:
        """Return what a source led to: each word of the completion, and the score that the source has for it.

        `source` is a place in `sources`, several, or a segment's name.
        """
        return queries.led_to(self, source)

    def retention(self, pi: float, selection: Selection = None) -> tuple[tuple[PromptToken, float], ...]:
        """Return with what probability each token of the user's text is kept where a share `pi` of them is.

        That is what pi-Soft metrics do with the scores, and what the paper's figures 3 to 6 show.
        """
        return queries.retention(self, pi, selection)

    def to_json(self) -> str:
        """Write all of it as JSON, one line. `from_json` gives back an equal explanation."""
        return to_document(self, _FORMAT, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read what `to_json` wrote.

        Raises InvalidExplanationError where it is something else, or of a version that is not known here.
        """
        try:
            return from_document(cls, text, _FORMAT, _VERSION, "an explanation")
        except MalformedError as error:
            raise InvalidExplanationError(str(error)) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as its name ends: .json, .safetensors, .html, .png, .svg, or .txt for a drawing.

        `load` reads the first two. PNG and SVG need the extra [plots], safetensors the extra [data].
        """
        from gradellm.explanation.io import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read a .json or .safetensors file that `save` wrote.

        Raises InvalidExplanationError, with the file's name, where it cannot be read or is something else.
        """
        from gradellm.explanation.io import load

        return load(path)

    def to_html(self) -> str:
        """Make a page of its own, for any browser and without a network.

        Point at a word to see what it came from, at a source to see what it led to; or see all of it as a matrix.
        """
        from gradellm.explanation.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from gradellm.explanation.html import framed

        return framed(self)

    def to_ansi(
        self,
        *,
        width: int = 80,
        color: ColorMode = "always",
        theme: Theme = "dark",
        fold: bool = True,
        retention: float | None = None,
    ) -> str:
        """Draw the completion word by word for a terminal, each over the prompt's text with its attribution in colour.

        `width` is in columns; `color="never"` draws with blocks under the text; `theme` is the terminal's background.
        Of long prompts only the lines that matter to a word are drawn, with `fold=False` every line.
        With `retention` it is the prompt alone, with what would be kept of it where that share of the tokens is, by the
        whole answer's attribution.
        """
        from gradellm.rendering.heatmap import draw, draw_retention
        from gradellm.rendering.terminal import Style

        style = Style.of(width=width, color=color, theme=theme, fold=fold)
        if retention is not None:
            return draw_retention(self.started, self.retention(retention), retention, style)
        return "".join(draw(self.events(), style))


class Collector:
    """Takes the events of one stream one by one, for both clients."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._tokens: list[Token] = []
        self._rows: list[Attribution] = []
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take the next event. Raises InvalidExplanationError where it cannot come now."""
        if self._finished is not None:
            raise InvalidExplanationError("events: something follows `finished`; give the events of one stream")
        if (event.started is None) != (self._started is not None):
            raise InvalidExplanationError("events: `started` must come first and once; give the events of one stream")
        if event.started is not None:
            self._started = event.started
        elif event.token is not None:
            self._tokens.append(event.token)
        elif event.attribution is not None:
            self._rows.append(event.attribution)
        elif event.finished is not None:
            self._finished = event.finished

    def explanation(self) -> Explanation:
        """Return what was collected. Raises InvalidExplanationError where nothing was."""
        if self._started is None:
            raise InvalidExplanationError("events: there are none, not even `started`")
        rows = sorted(self._rows, key=lambda row: row.token_index)
        return Explanation(self._started, tuple(self._tokens), tuple(rows), self._finished)


def _last_column(row: Attribution) -> int:
    return max(row.source_indexes) if row.source_indexes else len(row.scores) - 1
