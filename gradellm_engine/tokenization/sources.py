"""What a score stands for: a token, a word or a segment, of the prompt or of the whole prefix.

Scores are computed a token; a word or a segment scores the sum of its tokens, so that nothing is lost on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.params import AttributionSettings, Resolution, Sources
from gradellm_engine.tokenization.prompts import Prompt

GENERATED = "generated"  # the one source that all generated tokens are at resolution segment


@dataclass(frozen=True)
class Source:
    """A column of scores: its label and the prompt tokens that it sums."""

    label: str
    token_indexes: tuple[int, ...]


class SourceMap:
    """The columns of a request's scores, and how token scores become them.

    Attributes:
        sources: the columns over the prompt, in order.
    """

    def __init__(self, prompt: Prompt, settings: AttributionSettings) -> None:
        self._settings = settings
        self._num_prompt_tokens = len(prompt.tokens)
        groups = _groups(prompt, settings.resolution)
        self.sources = tuple(Source(label, tuple(indexes)) for label, indexes in groups)
        self._column = [0] * len(prompt.tokens)  # by token of the prompt, then of the completion
        for column, source in enumerate(self.sources):
            for index in source.token_indexes:
                self._column[index] = column
        self._num_columns = len(self.sources)
        self._generated_word: int | None = None  # the last one's

    @property
    def takes_words(self) -> bool:
        """Whether the column of a generated token depends on its word."""
        return self._settings.sources is Sources.PREFIX and self._settings.resolution is Resolution.WORD

    def add_generated(self, word: int | None) -> int | None:
        """Make a generated token a source of the later ones; its column, or None where only the prompt is scored.

        Args:
            word: which word of the completion it belongs to, where columns depend on it.
        """
        if self._settings.sources is Sources.PROMPT:
            return None
        match self._settings.resolution:
            case Resolution.TOKEN:
                starts = True
            case Resolution.WORD:
                starts = word != self._generated_word
                self._generated_word = word
            case Resolution.SEGMENT:
                starts = len(self._column) == self._num_prompt_tokens
        self._num_columns += starts
        self._column.append(self._num_columns - 1)
        return self._num_columns - 1

    def aggregate(self, scores: Tensor) -> Tensor:
        """From one score a token of a prefix [S] to one score a column that the prefix has [C].

        The prefix may be shorter than what is known by now: scores can come late.
        """
        scores = scores[: len(self._column)]  # without the prefix as a source: the prompt's alone
        if self._settings.resolution is Resolution.TOKEN:
            return scores
        column = self._column[: len(scores)]
        index = torch.tensor(column, device=scores.device)
        return scores.new_zeros(max(column) + 1).index_add_(0, index, scores)


def _groups(prompt: Prompt, resolution: Resolution) -> list[tuple[str, list[int]]]:
    match resolution:
        case Resolution.TOKEN:
            return [(token.text, [index]) for index, token in enumerate(prompt.tokens)]
        case Resolution.WORD:
            return [
                (prompt.text[prompt.tokens[word[0]].start : prompt.tokens[word[-1]].end].strip(), word)
                for word in word_groups(prompt)
            ]
        case Resolution.SEGMENT:
            segments: dict[tuple[str, bool], list[int]] = {}
            for index, token in enumerate(prompt.tokens):
                named = token.segment is not None
                segments.setdefault((token.segment or token.role.value, named), []).append(index)
            return [(label, indexes) for (label, _), indexes in segments.items()]


def word_groups(prompt: Prompt) -> list[list[int]]:
    """Token indexes by word."""
    groups: list[list[int]] = []
    for index, word in enumerate(prompt.words):
        if word == len(groups):
            groups.append([])
        groups[word].append(index)
    return groups
