"""The words of a stream with their scores, each as soon as it is complete and all of its tokens have a row."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.explanation.words import Grouping
from gradellm.pictures.chips import completion_chip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gradellm.models import AttributionSettings, Event, Token
    from gradellm.pictures.chips import Chip

__all__ = ["ScoredWord", "WordStream", "scored_words"]


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """A word of the completion with the sum of its tokens' rows."""

    tokens: tuple[Token, ...]
    scores: dict[int, float]
    """By column; empty for a word that was not explained."""
    earlier: tuple[Chip, ...]
    """The words before it that are scored."""

    @property
    def text(self) -> str:
        """Its text, with white space before it."""
        return "".join(token.text for token in self.tokens)

    @property
    def is_special(self) -> bool:
        """Whether it is special tokens without text, such as an end of turn."""
        return all(token.special and not token.text for token in self.tokens)


class WordStream:
    """Groups the events of one stream into scored words.

    `settings` say which tokens are explained; without them every token is waited for.
    """

    def __init__(self, settings: AttributionSettings | None = None) -> None:
        self._settings = settings
        self._grouping = Grouping()
        self._waiting: deque[tuple[Token, ...]] = deque()  # complete words
        self._rows: dict[int, dict[int, float]] = {}
        self._earlier: tuple[Chip, ...] = ()
        self._is_finished = False

    def add(self, event: Event) -> Iterator[ScoredWord]:
        """Add the next event. Yield the words that it completes."""
        if event.token is not None:
            self._enqueue(self._grouping.push(event.token))
        elif event.attribution is not None:
            self._rows[event.attribution.token_index] = event.attribution.by_column()
        elif event.finished is not None:
            self._is_finished = True
            self._enqueue(self._grouping.finish())
        while self._waiting and (self._is_finished or self._is_explained(self._waiting[0])):
            yield self._word(self._waiting.popleft())

    def end(self) -> Iterator[ScoredWord]:
        """Yield the words that are left when a stream ends, with or without `finished`."""
        self._enqueue(self._grouping.finish())
        while self._waiting:
            yield self._word(self._waiting.popleft())

    def _enqueue(self, word: list[Token]) -> None:
        if word:
            self._waiting.append(tuple(word))

    def _is_explained(self, word: tuple[Token, ...]) -> bool:
        return all(map(self._is_complete, reversed(word)))

    def _is_complete(self, token: Token) -> bool:
        """Whether a token has its row, or will get none."""
        return token.index in self._rows or (self._settings is not None and not self._settings.explains(token.index))

    def _word(self, tokens: tuple[Token, ...]) -> ScoredWord:
        scores: dict[int, float] = {}
        for token in tokens:
            for column, score in self._rows.get(token.index, {}).items():
                scores[column] = scores.get(column, 0.0) + score
        word = ScoredWord(tokens, scores, self._earlier)
        if (chip := completion_chip(tokens)) is not None:
            self._earlier = (*self._earlier, chip)
        return word


def scored_words(events: Iterable[Event]) -> Iterator[ScoredWord]:
    """Yield the scored words of a stream, or of its beginning."""
    stream = WordStream()
    for event in events:
        yield from stream.add(event)
    yield from stream.end()
