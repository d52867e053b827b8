"""What is asked of the upstream beside what its caller asked: token ids and log-probabilities.

They are read from its answers, and taken out of them again: log-probabilities of the tokens, and of the most probable
ones at each, by which other weights show. vLLM has both (`return_token_ids`); fields that it sends
with null where they are not asked for are null again, others are absent. Where its parsers hold text back, as at the
beginning of a tool call, it sends chunks with nothing but ids, which are not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradellm.following.openai_logprobs import told_logprobs
from gradellm.following.openai_requests import constrains_sampling

__all__ = ["NUM_TOP_LOGPROBS", "AnswerFields", "ChoiceTokens", "MalformedAnswerError"]

NUM_TOP_LOGPROBS = 8
_MAX_ID = 1 << 31


class MalformedAnswerError(Exception):
    """A chunk or an answer of the upstream is not as OpenAI's and vLLM's; it is passed on, but not explained."""


@dataclass(frozen=True)
class ChoiceTokens:
    """What a chunk, or an answer that is not streamed, has of one choice.

    Attributes:
        index: the choice's.
        ids: its new tokens; None where the upstream tells none.
        logprobs: one a token, None for one that is not known.
        top_logprobs: for each token those of the most probable ones, as far as they are told.
        content: new text of the message's content.
        reasoning: new text of its reasoning, where the upstream has that apart.
        is_finished: whether it has a finish reason.
    """

    index: int
    ids: tuple[int, ...] | None
    logprobs: Sequence[float | None] = ()
    top_logprobs: Sequence[Sequence[float]] = ()
    content: str = ""
    reasoning: str = ""
    is_finished: bool = False


class AnswerFields:
    """The fields of one request that are added, read and taken out.

    Args:
        body: the caller's request, `gradellm` included.
        asks_for_ids: whether the upstream is asked for ids and log-probabilities.
        asks_for_top: whether also for those of the most probable tokens.
    """

    def __init__(self, body: Mapping[str, Any], *, asks_for_ids: bool, asks_for_top: bool = False) -> None:
        self._body = body
        self._adds_ids = asks_for_ids and body.get("return_token_ids") is not True
        # Where one of these stands without `logprobs` the upstream refuses the request, which adding it would hide.
        needs_logprobs = any(body.get(name) for name in ("top_logprobs", "logprob_token_ids"))
        self._adds_logprobs = asks_for_ids and not body.get("logprobs") and not needs_logprobs
        is_compared = (self._adds_logprobs or body.get("logprobs") is True) and not constrains_sampling(body)
        self._adds_top = asks_for_top and is_compared and not body.get("top_logprobs")
        self._has_null_logprobs = True  # in choices without log-probabilities

    def request(self) -> dict[str, Any]:
        """Return the request for the upstream."""
        body = {name: value for name, value in self._body.items() if name != "gradellm"}
        if self._adds_ids:
            body["return_token_ids"] = True
        if self._adds_logprobs:
            body["logprobs"] = True
        if self._adds_top:
            body["top_logprobs"] = NUM_TOP_LOGPROBS
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
        elif self._adds_top and isinstance(told := choice.get("logprobs"), dict):
            choice["logprobs"] = _without_top(told)
        return choice


def _without_top(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice's log-probabilities without those of the most probable tokens."""
    content = told.get("content")
    if not isinstance(content, list):
        return dict(told)
    tokens = [{**token, "top_logprobs": []} if isinstance(token, Mapping) else token for token in content]
    return {**told, "content": tokens}


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
        *told_logprobs(choice, len(ids or ())),
        content=_text(message, "content"),
        reasoning=_text(message, "reasoning") or _text(message, "reasoning_content"),
        is_finished=choice.get("finish_reason") is not None,
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
