"""Tokens of prompt and completion, the sources that scores stand for, and attribution rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["template", "system", "user", "assistant", "tool", "other"]


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt. Offsets are code points of the rendered prompt text."""

    id: int
    text: str
    """Empty for a token that the tokenizer added."""
    start: int
    end: int
    """One past its last code point. Tokens that share a character overlap."""
    role: Role | None
    """The role of its message, or "template". None if unknown."""
    message: int | None
    """Index of its message. None for template tokens and raw prompts."""
    segment: str
    """Its segment's name; empty outside of segments."""
    special: bool
    """Whether it is one of the tokenizer's special tokens."""
    word: int | None = None
    """Index of its word in the prompt, from 0. None from older servers."""

    @property
    def is_definition(self) -> bool:
        """Whether it belongs to the definition of a tool, which is the segment "tool:NAME" and in no message."""
        return self.role == "system" and self.message is None and self.segment.startswith("tool:")


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the model reads it."""

    prompt_text: str
    """The text that was tokenized, chat template included."""
    tokens: tuple[PromptToken, ...]
    unplaced_messages: tuple[int, ...] = ()
    """As in `Started`."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a column of scores stands for."""

    label: str
    token_indexes: tuple[int, ...]
    """Indexes of its prompt tokens; empty for a part of the completion."""
    completion_indexes: tuple[int, ...] = ()
    """With sources="prefix": indexes of its completion tokens; empty for a part of the prompt."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the most probable tokens of a step."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the completion. Offsets are code points of the completion's text."""

    index: int
    """Its index in the completion, from 0."""
    id: int
    text: str
    """The text that it adds; empty for special tokens, for a part of a character, and from a stop text on."""
    start: int
    end: int
    logprob: float
    """Natural logarithm of its probability under the model, before temperature, top_k and top_p."""
    alternatives: tuple[Alternative, ...]
    special: bool
    source_index: int | None
    """With sources="prefix": its column in later rows."""
    word: int | None = None
    """Index of its word in the completion, from 0.

    None for a token without text, such as a part of a character, which belongs to the next token's word; and from
    older servers.
    """
    forced_by_grammar: bool = False
    """Whether the structured output allowed no other token: it says nothing about the model."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """An attribution row: how much each source contributed to one token."""

    token_index: int
    """The token's index in the completion."""
    scores: tuple[float, ...]
    """One raw score per source; with top_k_sources one for each of `source_indexes`."""
    source_indexes: tuple[int, ...]
    """With top_k_sources: the sources of `scores`, the largest score by magnitude first. Else empty."""
    target_token_id: int
    """The token whose logit was explained."""
    contrast_token_id: int | None
    """The token whose logit was subtracted."""
    error: float | None = None
    """The method's own estimate of its error; `MethodInfo.error` says what it measures."""

    def by_column(self) -> dict[int, float]:
        """Return the scores by their indexes in `Explanation.sources`."""
        return dict(zip(self.source_indexes or range(len(self.scores)), self.scores, strict=True))
