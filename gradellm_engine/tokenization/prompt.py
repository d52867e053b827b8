"""A prompt as the model sees it: tokens with their position in the text, role, message, segment and word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.tokenization.words import WordCounter

TAIL_TOKENS = 16  # of the shortest tail; each next one has TAIL_GROWTH times as many
TAIL_GROWTH = 8


class Role(StrEnum):
    """The role of the message that a token belongs to; TEMPLATE for the chat template's own tokens."""

    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    OTHER = "other"


class PromptToken(NamedTuple):
    """A token of the prompt.

    Attributes:
        id: token id.
        text: its text in the prompt; empty for a token that the tokenizer added.
        start: its first code point in the prompt's text.
        end: one past its last code point. Tokens that share a character overlap.
        role: role of its message.
        message: index of its message; None for template tokens and raw prompts.
        segment: name of its segment; None outside of segments.
        special: whether it is one of the tokenizer's special tokens.
    """

    id: int
    text: str
    start: int
    end: int
    role: Role
    message: int | None
    segment: str | None
    special: bool


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        text: the text that was tokenised, chat template included.
        tokens: at least one.
        segments: names of the caller's segments, in their order in the text.
        unplaced_messages: messages that the chat template rewrote, so that their tokens are indistinguishable from the
            template's; such tokens have the role TEMPLATE.
        unplaced_user_message: the first of them whose role is user, if any.
        is_raw_text: whether the prompt is raw text, to which the tokenizer adds its BOS token.
    """

    text: str
    tokens: tuple[PromptToken, ...]
    segments: tuple[str, ...]
    unplaced_messages: tuple[int, ...] = ()
    unplaced_user_message: int | None = None
    is_raw_text: bool = False

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return [token.id for token in self.tokens]

    @cached_property
    def words(self) -> list[int]:
        """The index of each token's word, from 0: see `gradellm_engine.tokenization.words`."""
        counter, end = WordCounter(), 0
        for token in self.tokens:
            counter.push(
                self.text[end : token.end],
                special=token.special,
                message=(token.role, token.message),
                shares_character=token.start < end,
            )
            end = max(end, token.end)
        counter.finish()
        return _join_trailing_space(self.tokens, counter.words)

    def check_user_text(self, field: str) -> None:
        """Refuse a setting that selects the user's own text where its tokens are unknown, or there are none.

        Raises:
            InvalidRequestError: naming the field, with the reason.
        """
        if self.unplaced_user_message is not None:
            raise InvalidRequestError(
                field,
                "user: which tokens are the user's own text is not known, because the model's chat template rewrites "
                f"message {self.unplaced_user_message}: choose another value",
            )
        if all(token.role is not Role.USER or token.special for token in self.tokens):
            raise InvalidRequestError(
                field, "user: the prompt has no token of the user's own text; choose another value"
            )


@dataclass(frozen=True)
class PromptTail:
    """The last tokens of a prompt.

    Attributes:
        text: their text.
        ids: their ids.
        add_special_tokens: whether the tokenizer's BOS token is one of them.
    """

    text: str
    ids: list[int]
    add_special_tokens: bool


def prompt_tails(prompt: Prompt) -> Iterator[PromptTail]:
    """Tails of a prompt, ever longer, to tokenise a completion's text after; the last is the whole prompt.

    Some tokenizers put a space before every text. A tail that begins with a space comes a second time without it.
    """
    num_tokens = TAIL_TOKENS
    while num_tokens < len(prompt.tokens):
        first = prompt.tokens[-num_tokens]
        ids = prompt.ids[-num_tokens:]
        yield PromptTail(prompt.text[first.start :], ids, add_special_tokens=False)
        if prompt.text[first.start : first.start + 1] == " ":
            yield PromptTail(prompt.text[first.start + 1 :], ids, add_special_tokens=False)
        num_tokens *= TAIL_GROWTH
    yield PromptTail(prompt.text, prompt.ids, add_special_tokens=True)
    yield PromptTail(prompt.text, prompt.ids, add_special_tokens=False)


def _join_trailing_space(tokens: Sequence[PromptToken], words: list[int]) -> list[int]:
    """Words where white space at the end of a message belongs to the word before it, as no word follows it."""
    joined = set()
    for last, token in enumerate(tokens):
        if token.text.strip():
            continue
        if last + 1 < len(tokens) and _same_message(token, tokens[last + 1]):
            continue
        first = last  # first token of the word that `last` is in, as far back as it is white space
        while first > 0 and words[first - 1] == words[last] and not tokens[first].text.strip():
            first -= 1
        if first > 0 and not tokens[first].text.strip() and _same_message(tokens[first - 1], tokens[first]):
            joined.add(words[last])
    if not joined:
        return words
    num_joined = list(accumulate(word in joined for word in range(words[-1] + 1)))
    return [word - num_joined[word] for word in words]


def _same_message(before: PromptToken, after: PromptToken) -> bool:
    """Whether two neighbouring tokens are text of one message."""
    return not (before.special or after.special) and (before.role, before.message) == (after.role, after.message)
