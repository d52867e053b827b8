"""A completion with its attribution, collected from the events of a stream."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidExplanationError
from gradellm.explanation import queries
from gradellm.explanation.reasoning import reasoning_tokens
from gradellm.explanation.validation import check_explanation
from gradellm.explanation.words import Word, prompt_words, words
from gradellm.models import Attribution, Event, Finished, PromptToken, Provenance, Source, Started, Token
from gradellm.serialization import MalformedError, from_document, to_document

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradellm.explanation.citations import Citation
    from gradellm.explanation.queries import By, Part, Selection
    from gradellm.explanation.tool_calls import ToolCallOrigin
    from gradellm.explanation.tracing.trace import Trace
    from gradellm.pictures.picture import Picture, Scale, WordScore
    from gradellm.rendering.colormap import Theme
    from gradellm.rendering.terminal import ColorMode

__all__ = ["Collector", "Explanation"]

_FORMAT = "gradellm.explanation"
_VERSION = 1


@dataclass(frozen=True)
class Explanation:
    """A completion with its attribution: how much each part of the prompt contributed to each of its tokens.

    It prints as its text; `scores`, `sources` and `matrix()` have the attribution.
    """

    started: Started
    """The prompt as tokens, and the resolved settings."""
    tokens: tuple[Token, ...]
    """The completion's tokens, without forced tokens."""
    attributions: tuple[Attribution, ...]
    """Attribution rows, sorted by `token_index`. Forced tokens can have one."""
    finished: Finished | None
    """Why the completion ended, token counts and timings. None for an interrupted stream."""

    def __post_init__(self) -> None:
        check_explanation(self.started, self.tokens, self.attributions)

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Explanation:
        """Collect the events of one stream, or of its beginning.

        Raises InvalidExplanationError for events that are not in a stream's order.
        """
        collector = Collector()
        for event in events:
            collector.add(event)
        return collector.explanation()

    def events(self) -> Iterator[Event]:
        """Yield the events again, each attribution as early as possible."""
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
        """The text that was tokenized, chat template included."""
        return self.started.prompt_text

    @property
    def prompt_tokens(self) -> tuple[PromptToken, ...]:
        """The prompt's tokens."""
        return self.started.prompt_tokens

    @property
    def provenance(self) -> Provenance:
        """Model, versions and settings, which are needed to compute the explanation again."""
        return self.started.provenance

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The columns of scores: the prompt's tokens, words or segments, then generated tokens."""
        prompt = self._prompt_sources
        completion: dict[int, list[Token]] = {}
        for token in self.tokens:
            if token.source_index is not None:
                completion.setdefault(token.source_index, []).append(token)
        last = max((*completion, *(_last_column(row) for row in self.attributions)), default=-1)
        generated = []
        for column in range(len(prompt), last + 1):
            parts = completion.get(column, [])  # empty for a forced token, which is not sent back
            text = "".join(token.text for token in parts)
            label = text.strip() if self.started.sources else text  # as for the prompt's words and tokens
            generated.append(Source(label, (), tuple(token.index for token in parts)))
        return (*prompt, *generated)

    @property
    def num_prompt_columns(self) -> int:
        """The number of `sources` that are parts of the prompt; the rest are generated tokens."""
        return len(self._prompt_sources)

    @cached_property
    def _prompt_sources(self) -> tuple[Source, ...]:
        if self.started.sources:
            return self.started.sources
        return tuple(Source(token.text, (index,)) for index, token in enumerate(self.prompt_tokens))

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words of the completion, as segmented by the engine: with punctuation, without white space."""
        return tuple(words(self.tokens))

    @cached_property
    def reasoning(self) -> frozenset[int]:
        """The indexes of the tokens of reasoning: `<think>` blocks of the completion, markers included."""
        return reasoning_tokens(self.prompt_text, self.prompt_tokens, self.tokens)

    @cached_property
    def prompt_words(self) -> tuple[tuple[str, int], ...]:
        """For each prompt token its word, and the word's first code point."""
        return prompt_words(self.prompt_text, self.prompt_tokens)

    @cached_property
    def drawn(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The columns of scores as they are drawn, with labels: columns that share a character are drawn together."""
        return tuple(queries.drawn(self))

    @cached_property
    def drawn_places(self) -> tuple[int, ...]:
        """For each column of `sources` its index in `drawn`."""
        return tuple(index for index, (_, columns) in enumerate(self.drawn) for _ in columns)

    def row(self, index: int) -> Attribution | None:
        """Return the attribution row of a token, by its index in the completion; None if it has none."""
        return self._rows.get(index)

    @cached_property
    def _rows(self) -> dict[int, Attribution]:
        return {row.token_index: row for row in self.attributions}

    @cached_property
    def scores(self) -> tuple[tuple[float, ...], ...]:
        """One row of raw scores per token, in the order of `tokens`; empty for a token without attribution.

        A row has one score for each column of `sources` before its token; with top_k_sources one score for each column
        in the same row of `source_indexes`.
        """
        return tuple(row.scores if (row := self._rows.get(token.index)) else () for token in self.tokens)

    @cached_property
    def source_indexes(self) -> tuple[tuple[int, ...], ...]:
        """With top_k_sources: the columns of the scores, one row per token. Else empty rows."""
        return tuple(row.source_indexes if (row := self._rows.get(token.index)) else () for token in self.tokens)

    def matrix(self) -> NDArray[np.float64]:
        """Return the scores as a numpy array [tokens, sources], NaN for missing scores. Needs numpy."""
        import numpy as np

        matrix = np.full((len(self.tokens), len(self.sources)), np.nan)
        for values, scores, columns in zip(matrix, self.scores, self.source_indexes, strict=True):
            values[list(columns) or slice(len(scores))] = scores
        return matrix

    def attribution_of(self, selection: Selection = None) -> tuple[float, ...]:
        """Return a score for each of `sources`: the sum over the tokens of a selection.

        A selection is a word, a token index, a range of token indexes, a text in the completion (its first place) or a
        regular expression (all its matches); None for all of it.
        """
        return queries.attribution_of(self, selection)

    def token_indexes(self, selection: Selection = None) -> tuple[int, ...]:
        """Return the indexes of the tokens of a selection, as in `attribution_of`, with and without attribution.

        They are what the keyword `tokens` of `Client.attribute` takes, to explain these tokens only.
        """
        return queries.selected_tokens(self, selection)

    def parts(self, by: By = "segment", selection: Selection = None) -> tuple[Part, ...]:
        """Return the contribution of each "segment", "role", "message", "word" or "source", in text order."""
        return queries.parts(self, by, selection)

    def top_sources(
        self, selection: Selection = None, *, n: int = 5, by: By = "word", written: bool = True
    ) -> tuple[Part, ...]:
        """Return the n parts with the largest contributions to a selection, sorted by magnitude.

        With `written`, the default, without template and special tokens.
        """
        return queries.top_sources(self, selection, n=n, by=by, written=written)

    def led_to(self, source: Sequence[int] | int | str) -> tuple[tuple[Word, float], ...]:
        """Return each word of the completion with the score that a source has for it.

        `source` is an index in `sources`, several indexes, or a segment's name.
        """
        return queries.led_to(self, source)

    def citations(self, *, threshold: float | None = None, require_names: bool = True) -> tuple[Citation, ...]:
        """Return the answer's sentences, each with the documents that it was drawn from.

        Documents are the prompt's named segments. A sentence that none stands out for has none, nor has one about names
        of the question that no document has, unless `require_names` is False. `threshold` is the least strength of a
        cited document; by default the one that was chosen for the explanation's settings.
        """
        from gradellm.explanation.citations import citations

        return citations(self, threshold=threshold, require_names=require_names)

    def tool_calls(
        self, *, parser: str | None = None, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[ToolCallOrigin, ...]:
        """Return the calls of tools in the completion, each with what its name and arguments came from.

        `parser` names the form of calls: hermes, llama3_json, mistral or qwen3_coder; by default the model's. `tools`
        are the request's, by whose types qwen3_coder makes JSON.

        Raises InvalidExplanationError for another parser, and if the model's is not known.
        """
        from gradellm.explanation.tool_calls import tool_calls

        return tool_calls(self, parser=parser, tools=tools)

    def trace(self, selection: Selection = None, *, by: By = "word") -> Trace:
        """Return where a selection came from, followed through the model's own earlier words back to the prompt.

        Needs scores of the whole prefix (`sources="prefix"`). `by` is as for `parts`. Each selected token starts with
        an equal share; the parts' shares and `unexplained` sum to 1.

        Raises InvalidExplanationError if the scores are those of the prompt alone, or of segments.
        """
        from gradellm.explanation.tracing.trace import trace

        return trace(self, selection, by)

    def picture(
        self,
        selection: Selection = None,
        *,
        scale: Scale = "excess",
        word_score: WordScore | None = None,
        pi: float = 0.3,
    ) -> Picture:
        """Return what a picture of a selection shows: a colour and a share for each word of the prompt.

        Scale "excess" colours a word by what its score exceeds the median of the words by, "raw" by its score, and
        "retention" by its keep probability at the retention share `pi`. A word's score is the largest of its tokens'
        scores by magnitude ("max"), or their "mean" or "sum"; with scores by word or segment it is the mean by default.
        The chat template and the attention sink are folded.

        Raises InvalidExplanationError if no token of the selection was explained, or an argument is not defined.
        """
        return queries.picture(self, selection, scale=scale, word_score=word_score, pi=pi)

    def retention(self, pi: float, selection: Selection = None) -> tuple[tuple[PromptToken, float], ...]:
        """Return the keep probability of each token of the user's text at the retention share `pi`.

        These are the probabilities of pi-Soft metrics, as in the paper's figures 3 to 6.
        """
        return queries.retention(self, pi, selection)

    def to_json(self) -> str:
        """Serialize the explanation as one line of JSON. `from_json` restores an equal explanation."""
        return to_document(self, _FORMAT, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read the result of `to_json`.

        Raises InvalidExplanationError for other JSON, or an unsupported version.
        """
        try:
            return from_document(cls, text, _FORMAT, _VERSION, "an explanation")
        except MalformedError as error:
            raise InvalidExplanationError(str(error)) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file by its suffix: .json, .safetensors, .html, .png, .svg, or .txt for a drawing.

        `load` reads the first two. PNG and SVG need the extra [plots], safetensors the extra [data].
        """
        from gradellm.explanation.io import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read a .json or .safetensors file of `save`.

        Raises InvalidExplanationError, with the file's name, if it is unreadable or not an explanation.
        """
        from gradellm.explanation.io import load

        return load(path)

    def to_html(self) -> str:
        """Return a self-contained web page, which works offline.

        Hover a word to see its sources, hover a source to see the words that it contributed to, or open the matrix.
        """
        from gradellm.explanation.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from gradellm.explanation.html import repr_html

        return repr_html(self)

    def to_ansi(
        self,
        *,
        width: int = 80,
        color: ColorMode = "always",
        theme: Theme = "dark",
        fold: bool = True,
        scale: Scale = "excess",
        retention: float | None = None,
    ) -> str:
        """Draw a heat map of the prompt for each word of the completion, for a terminal.

        `width` is in columns; `color="never"` draws blocks below the text; `theme` is the terminal's background. Of
        long prompts only lines with strong words are drawn, with `fold=False` every line. `scale` is what colours
        stand for, as in `picture`. With `retention` draw the prompt once, with the keep probabilities of the whole
        completion's attribution at that retention share.
        """
        from gradellm.explanation.terminal_view import draw, draw_retention
        from gradellm.rendering.terminal import Style

        style = Style.of(width=width, color=color, theme=theme, fold=fold)
        if retention is not None:
            return draw_retention(self.started, dict(enumerate(self.attribution_of())), retention, style)
        return "".join(draw(self.events(), style, scale))


class Collector:
    """Collects the events of one stream one by one."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._tokens: list[Token] = []
        self._rows: list[Attribution] = []
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Add the next event. Raises InvalidExplanationError for an event out of order."""
        if self._finished is not None:
            raise InvalidExplanationError("events: there are events after `finished`; give the events of one stream")
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
        """Return the collected explanation. Raises InvalidExplanationError without events."""
        if self._started is None:
            raise InvalidExplanationError("events: there are none, not even `started`")
        rows = sorted(self._rows, key=lambda row: row.token_index)
        return Explanation(self._started, tuple(self._tokens), tuple(rows), self._finished)


def _last_column(row: Attribution) -> int:
    return max(row.source_indexes) if row.source_indexes else len(row.scores) - 1
