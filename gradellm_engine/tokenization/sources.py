"""Sources of attribution: the tokens, words or segments, of the prompt or of the whole prefix, that scores belong to.

Scores are computed for tokens; a word or a segment scores the sum of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.params import AttributionSettings, Resolution, Sources
from gradellm_engine.tokenization.prompt import Prompt

GENERATED = "generated"  # label of the source of all generated tokens at resolution segment


@dataclass(frozen=True)
class Source:
    """A column of scores.

    Attributes:
        label: its text, or the segment's name.
        token_indexes: the prompt tokens whose scores it sums.
    """

    label: str
    token_indexes: tuple[int, ...]


class SourceMap:
    """Maps token scores to a request's sources, the columns of an attribution row.

    Attributes:
        sources: the columns over the prompt, in order.
    """

    def __init__(self, prompt: Prompt, settings: AttributionSettings) -> None:
        self._settings = settings
        self._num_prompt_tokens = len(prompt.tokens)
        groups = _groups(prompt, settings.resolution)
        self.sources = tuple(Source(label, tuple(indexes)) for label, indexes in groups)
        self._column = [0] * len(prompt.tokens)  # of each token of prompt and completion
        for column, source in enumerate(self.sources):
            for index in source.token_indexes:
                self._column[index] = column
        self._num_columns = len(self.sources)
        self._generated_word: int | None = None  # word of the last generated token

    @property
    def takes_words(self) -> bool:
        """Whether `add_generated` needs the word of a generated token."""
        return self._settings.sources is Sources.PREFIX and self._settings.resolution is Resolution.WORD

    def add_generated(self, word: int | None) -> int | None:
        """Add a generated token to the sources of later steps.

        Args:
            word: index of its word in the completion, where `takes_words`.

        Returns:
            Its column; None where only the prompt is a source.
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
        """Scores of a prefix's columns [C] from scores of its tokens [S].

        Scores may arrive after further tokens were generated, so the prefix may be shorter than the sequence.
        """
        scores = scores[: len(self._column)]  # only the prompt's, where generated tokens are no sources
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
    """Token indexes of each word of a prompt."""
    groups: list[list[int]] = []
    for index, word in enumerate(prompt.words):
        if word == len(groups):
            groups.append([])
        groups[word].append(index)
    return groups
