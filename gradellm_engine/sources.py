"""What a score stands for: a token, a word or a segment, of the prompt or of the whole prefix.

Scores are computed a token; a word or a segment scores the sum of its tokens, so that nothing is lost on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.prompts import Prompt, PromptToken
from gradellm_engine.settings import AttributionSettings, Resolution, Sources

GENERATED = "generated"  # the one source that all generated tokens are at resolution segment


@dataclass(frozen=True)
class Source:
    """A column of scores: its label and the prompt tokens that it sums."""

    label: str
    token_indexes: tuple[int, ...]


class WordSplitter:
    """Says token by token where words begin: at white space, at special tokens, and where another speaker begins.

    A token of white space alone belongs to the word after it.
    """

    def __init__(self) -> None:
        self._before: tuple[str, bool, object] | None = None
        self._blank = True  # whether the word has only white space so far

    def starts_word(self, text: str, *, special: bool, speaker: object = None, gap: str = "") -> bool:
        """Whether a token begins a word.

        Args:
            text: the token's text.
            special: whether it is a special token.
            speaker: whose words it carries.
            gap: text between the token before and this one that belongs to neither.
        """
        before, self._before = self._before, (text, special, speaker)
        starts = before is None or before[1] or special or before[2] != speaker
        if not starts and not self._blank and before is not None:
            starts = before[0][-1:].isspace() or text[:1].isspace() or any(map(str.isspace, gap))
        self._blank = (starts or self._blank) and (not text or text.isspace()) and not special
        return starts


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
        self._generated_words = WordSplitter()

    def add_generated(self, text: str, *, special: bool) -> int | None:
        """Make a generated token a source of the later ones; its column, or None where only the prompt is scored."""
        if self._settings.sources is Sources.PROMPT:
            return None
        match self._settings.resolution:
            case Resolution.TOKEN:
                starts = True
            case Resolution.WORD:
                starts = self._generated_words.starts_word(text, special=special)
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
                for word in prompt_words(prompt)
            ]
        case Resolution.SEGMENT:
            segments: dict[tuple[str, bool], list[int]] = {}
            for index, token in enumerate(prompt.tokens):
                named = token.segment is not None
                segments.setdefault((token.segment or token.role.value, named), []).append(index)
            return [(label, indexes) for (label, _), indexes in segments.items()]


def prompt_words(prompt: Prompt) -> list[list[int]]:
    """Token indexes by word. White space at the end belongs to the last word."""
    splitter = WordSplitter()
    groups: list[list[int]] = []
    end = 0
    for index, token in enumerate(prompt.tokens):
        if splitter.starts_word(
            token.text, special=token.special, speaker=_speaker(token), gap=prompt.text[end : token.start]
        ):
            groups.append([])
        groups[-1].append(index)
        end = token.end
    last = prompt.tokens[groups[-1][0]]
    is_blank = not last.special and not "".join(prompt.tokens[index].text for index in groups[-1]).strip()
    if is_blank and len(groups) > 1 and _speaker(prompt.tokens[groups[-2][-1]]) == _speaker(last):
        trailing = groups.pop()
        groups[-1] += trailing
    return groups


def _speaker(token: PromptToken) -> tuple[object, ...]:
    return token.role, token.message
