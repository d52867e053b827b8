"""What is asked of the upstream beside what its caller asked: token ids and log-probabilities.

They are read from its answers, and taken out of them again. vLLM has both (`return_token_ids`); fields that it sends
with null where they are not asked for are null again, others are absent. Where its parsers hold text back, as at the
beginning of a tool call, it sends chunks with nothing but ids, which are not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AnswerFields", "ChoiceTokens", "MalformedAnswerError"]

_MAX_ID = 1 << 31
_UNKNOWN_LOGPROB = -9999.0  # vLLM's for one that JSON cannot have


class MalformedAnswerError(Exception):
    """A chunk or an answer of the upstream is not as OpenAI's and vLLM's; it is passed on, but not explained."""


@dataclass(frozen=True)
class ChoiceTokens:
    """What a chunk, or an answer that is not streamed, has of one choice.

    Attributes:
        index: the choice's.
        ids: its new tokens; None where the upstream tells none.
        logprobs: one a token, None for one that is not known; or None.
        content: new text of the message's content.
        reasoning: new text of its reasoning, where the upstream has that apart.
        is_finished: whether it has a finish reason.
    """

    index: int
    ids: tuple[int, ...] | None
    logprobs: tuple[float | None, ...] | None
    content: str = ""
    reasoning: str = ""
    is_finished: bool = False


class AnswerFields:
    """The fields of one request that are added, read and taken out.

    Args:
        body: the caller's request, `gradellm` included.
        asks_for_ids: whether the upstream is asked for ids and log-probabilities.
    """

    def __init__(self, body: Mapping[str, Any], *, asks_for_ids: bool) -> None:
        self._body = body
        self._adds_ids = asks_for_ids and body.get("return_token_ids") is not True
        # Where one of these stands without `logprobs` the upstream refuses the request, which adding it would hide.
        needs_logprobs = any(body.get(name) for name in ("top_logprobs", "logprob_token_ids"))
        self._adds_logprobs = asks_for_ids and not body.get("logprobs") and not needs_logprobs
        self._has_null_logprobs = True  # in choices without log-probabilities

    def request(self) -> dict[str, Any]:
        """Return the request for the upstream."""
        body = {name: value for name, value in self._body.items() if name != "gradellm"}
        if self._adds_ids:
            body["return_token_ids"] = True
        if self._adds_logprobs:
            body["logprobs"] = True
        return body

    def prompt_ids(self, answer: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Return the ids of the prompt, if a chunk or an answer has them. Raises MalformedAnswerError."""
        return _ids(answer.get("prompt_token_ids"))

    def choices(self, answer: Mapping[str, Any]) -> list[ChoiceTokens]:
        """Return the tokens of a chunk, or of an answer that is not streamed. Raises MalformedAnswerError."""
        choices = answer.get("choices")
        if not isinstance(choices, list):
            raise MalformedAnswerError("has no list of choices")
        return [_choice(choice) for choice in choices]

    def stripped(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        """Return a chunk or an answer without what its caller did not ask for; None for a chunk of nothing else."""
        choices = answer.get("choices")
        choices = choices if isinstance(choices, list) else []
        if choices and all(map(self._is_added, choices)):
            return None
        answer = dict(answer)
        if self._adds_ids and answer.get("prompt_token_ids") is not None:
            answer["prompt_token_ids"] = None
        if choices:
            answer["choices"] = [self._stripped_choice(choice) for choice in choices]
        return answer

    def _is_added(self, choice: object) -> bool:
        """Whether a choice of a chunk is there for what was added only."""
        if not isinstance(choice, Mapping) or choice.get("delta") != {} or choice.get("finish_reason") is not None:
            return False
        has_ids, has_logprobs = choice.get("token_ids") is not None, choice.get("logprobs") is not None
        is_asked = (has_ids and not self._adds_ids) or (has_logprobs and not self._adds_logprobs)
        return (has_ids or has_logprobs) and not is_asked

    def _stripped_choice(self, choice: object) -> object:
        if not isinstance(choice, dict):
            return choice
        choice = dict(choice)
        if self._adds_ids and choice.get("token_ids") is not None:
            choice["token_ids"] = None
        if self._adds_logprobs:
            if choice.get("logprobs") is None:
                self._has_null_logprobs = "logprobs" in choice
            elif self._has_null_logprobs:
                choice["logprobs"] = None
            else:
                del choice["logprobs"]
        return choice


def _choice(choice: object) -> ChoiceTokens:
    if not isinstance(choice, Mapping):
        raise MalformedAnswerError("has a choice that is no object")
    index = choice.get("index", 0)
    if type(index) is not int or not 0 <= index < 1024:
        raise MalformedAnswerError("has a choice without an index")
    message = choice.get("delta", choice.get("message"))
    message = message if isinstance(message, Mapping) else {}
    ids = _ids(choice.get("token_ids"))
    return ChoiceTokens(
        index,
        ids,
        None if ids is None else _logprobs(choice.get("logprobs"), len(ids)),
        _text(message, "content"),
        _text(message, "reasoning") or _text(message, "reasoning_content"),
        choice.get("finish_reason") is not None,
    )


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""


def _ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < _MAX_ID for each in value):
        raise MalformedAnswerError("has token ids that are no list of integers from 0")
    return tuple(value)


def _logprobs(value: object, count: int) -> tuple[float | None, ...] | None:
    """Return a choice's log-probabilities, one for each of `count` tokens, None for one that is not known; or None."""
    content = value.get("content") if isinstance(value, Mapping) else None
    if not isinstance(content, list) or len(content) != count:
        return None
    found = (each.get("logprob") if isinstance(each, Mapping) else None for each in content)
    return tuple(
        min(float(each), 0.0) if isinstance(each, int | float) and each > _UNKNOWN_LOGPROB else None for each in found
    )
