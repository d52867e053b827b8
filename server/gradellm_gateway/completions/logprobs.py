"""Log-probabilities in the format of text completions: lists, a place for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradellm.models import PromptToken, Token

__all__ = ["LoggedToken", "logprobs_object", "of_completion", "of_prompt"]

_LOWEST = -9999.0  # vLLM's for those that JSON cannot have


@dataclass(frozen=True)
class LoggedToken:
    """A token of prompt or completion.

    Attributes:
        text: its own; one that alternatives have, too, as they have it.
        offset: of its text in the choice's, in code points.
        logprob: None for the first token of a prompt, before which there is nothing.
        top: log-probabilities of the most probable tokens and of itself by their texts; None likewise.
    """

    text: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


def of_completion(tokens: Sequence[Token], *, offset: int) -> list[LoggedToken]:
    """Return tokens of a completion that begins at an offset of the choice's text."""
    return [_logged(token, offset + token.start) for token in tokens]


def of_prompt(tokens: Sequence[PromptToken], scored: Sequence[Token]) -> list[LoggedToken]:
    """Return tokens of a prompt; `scored` are those after the first, with their log-probabilities."""
    first = [LoggedToken(token.text, token.start, None, None) for token in tokens[:1]]
    return first + [_logged(each, token.start) for token, each in zip(tokens[1:], scored, strict=True)]


def logprobs_object(tokens: Sequence[LoggedToken]) -> dict[str, Any]:
    """Return OpenAI's object."""
    return {
        "text_offset": [token.offset for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "tokens": [token.text for token in tokens],
        "top_logprobs": [token.top for token in tokens],
    }


def _logged(token: Token, offset: int) -> LoggedToken:
    text = next((other.text for other in token.alternatives if other.id == token.id), token.text)
    logprob = max(token.logprob, _LOWEST)
    top = {other.text: max(other.logprob, _LOWEST) for other in reversed(token.alternatives)}
    return LoggedToken(text, offset, logprob, {**dict(reversed(top.items())), text: logprob})
