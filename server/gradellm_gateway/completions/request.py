"""Text completion requests, validated and converted to SDK keywords."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradellm import InvalidRequestError
from gradellm_gateway.chat import GRADELLM_FIELDS, attribution_keywords
from gradellm_gateway.documents import DOCUMENT_FIELDS
from gradellm_gateway.event_objects import Extras
from gradellm_gateway.fields import (
    FIELDS,
    Check,
    FieldNames,
    boolean,
    check_fields,
    integer,
    only,
    quoted,
    text,
)
from gradellm_gateway.openapi.schemas import described
from gradellm_gateway.running_usage import usage_options
from gradellm_gateway.sampling_fields import SAMPLING_FIELDS, SAMPLING_NAMES, sampling_keywords, seed_of_choice
from gradellm_gateway.structured.output_format import structured_output

__all__ = ["COMPLETION_FIELDS", "MAX_PROMPTS", "ChoiceRequest", "CompletionRequest"]

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16  # OpenAI's and vLLM's
MAX_LOGPROBS = 20
_OWN_FIELDS = GRADELLM_FIELDS - DOCUMENT_FIELDS  # which are found in messages


@described(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1}, "minItems": 1},
        ]
    }
)
def _prompt(path: str, value: object) -> None:
    """A text, a list of texts, token ids, or a list of lists of them."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise InvalidRequestError.of(path, f"must be a text, token ids, or a list of either, not {quoted(value)}")
    if all(isinstance(each, str) for each in value) or _are_ids(value):
        if "" in value:  # refused before the other prompts are completed
            raise InvalidRequestError.of(f"{path}[{value.index('')}]", "must not be empty")
        return
    for index, each in enumerate(value):
        if not (isinstance(each, list) and each and _are_ids(each)):
            raise InvalidRequestError.of(
                f"{path}[{index}]", f"must be token ids, as all of a list of them or of texts, not {quoted(each)}"
            )


def _are_ids(value: list[Any]) -> bool:
    return set(map(type, value)) <= {int}


@described({"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS})
def _logprobs(path: str, value: object) -> None:
    integer(path, value)
    if isinstance(value, int) and not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError.of(path, f"must be between 0 and {MAX_LOGPROBS}, not {quoted(value)}")


COMPLETION_FIELDS: dict[str, Check] = {
    "model": text,
    "prompt": _prompt,
    "echo": boolean,
    "logprobs": _logprobs,
    "max_tokens": integer,
    **SAMPLING_FIELDS,
    **{
        name: FIELDS[name]
        for name in (
            *("stream", "stream_options", "n", "return_token_ids", "gradellm", "response_format"),
            "structured_outputs",
        )
    },
    # Accepted without effect on the completion.
    "user": text,
    # Not supported: accepted only with the value that leaves it off.
    "best_of": only(integer, 1),
    "suffix": only(text, ""),
}
"""Checks by field name. null is the same as absent, except for `prompt`."""


@dataclass(frozen=True)
class ChoiceRequest:
    """One choice of an answer.

    Attributes:
        index: its number in the answer.
        prompt: the SDK's keyword of its prompt, `prompt` or `prompt_ids`.
        keywords: for the SDK's `generate`, the prompt included.
        names: maps these keywords to the request's field names.
    """

    index: int
    prompt: dict[str, Any]
    keywords: dict[str, Any]
    names: FieldNames


class PromptFieldNames(FieldNames):
    """Maps field names of the SDK and the server to the caller's, whose prompt may be one of several.

    Args:
        body: the request with this prompt alone.
        prompt_path: of the prompt in the caller's request, such as prompt[2].
        constraint: path of what constrains the completion; empty where nothing does.
    """

    def __init__(self, body: Mapping[str, Any], prompt_path: str, constraint: str) -> None:
        super().__init__(
            body,
            {**SAMPLING_NAMES, "max_new_tokens": "max_tokens", "num_alternatives": "logprobs", "prompt_ids": "prompt"},
            attribution="gradellm.{}",
            gradellm_fields=_OWN_FIELDS - sampling_keywords(body).keys(),
            constraint=constraint,
        )
        self._prompt_path = prompt_path

    def path(self, field: str) -> str:
        """See `FieldNames`."""
        path = super().path(field)
        return self._prompt_path + path.removeprefix("prompt") if path.startswith("prompt") else path


@dataclass(frozen=True)
class CompletionRequest:
    """A validated text completion request.

    Attributes:
        choices: `n` a prompt, those of one prompt after another.
        is_streamed: whether the response is chunks.
        includes_usage: whether a last chunk reports usage.
        has_running_usage: whether each other chunk does, too, of its choice so far.
        is_explained: whether the request has a `gradellm` object.
        extras: what it asks for beside events.
        echo: whether choices begin with their prompts.
        logprobs: number of alternatives whose log-probabilities are returned; None for no log-probabilities.
        token_ids: whether the ids of prompt and completion are returned.
        generates: whether there is more than the prompt to return.
        num_choices: a prompt.
    """

    choices: tuple[ChoiceRequest, ...]
    is_streamed: bool
    includes_usage: bool
    has_running_usage: bool
    is_explained: bool
    extras: Extras
    echo: bool
    logprobs: int | None
    token_ids: bool
    generates: bool
    num_choices: int

    @property
    def first_choices(self) -> tuple[ChoiceRequest, ...]:
        """The first choice of each prompt."""
        return self.choices[:: self.num_choices]

    @classmethod
    def from_json(cls, body: Any) -> CompletionRequest:  # noqa: ANN401 (whatever a client sent)
        """Validate a request's JSON value. Raises InvalidRequestError, which names the field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        check_fields(body, COMPLETION_FIELDS)
        if body.get("prompt") is None:
            raise InvalidRequestError.of("prompt", "is missing: send a text, token ids, or a list of either")
        own, echo = body.get("gradellm"), body.get("echo") is True
        extras = Extras.of(own or {}, "gradellm.{}")
        is_streamed = body.get("stream") is True
        if extras.pictures and not is_streamed:
            raise InvalidRequestError.of("gradellm.pictures", "needs stream: true")
        max_tokens = DEFAULT_MAX_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
        constraint, constraint_path = structured_output(body)
        if max_tokens == 0 and (not echo or own is not None or constraint):
            raise InvalidRequestError.of(
                "max_tokens",
                "0 returns only the prompt: needs echo: true, and no gradellm, response_format or structured_outputs",
            )
        keywords = {**sampling_keywords(body), **constraint}
        keywords |= {"max_new_tokens": max_tokens, **attribution_keywords(own, keywords, _OWN_FIELDS)}
        if body.get("logprobs"):
            keywords["num_alternatives"] = body["logprobs"]
        return cls(
            _choices(body, keywords, constraint_path),
            is_streamed=is_streamed,
            **usage_options(body),
            is_explained=own is not None,
            extras=extras,
            echo=echo,
            logprobs=body.get("logprobs"),
            token_ids=body.get("return_token_ids") is True,
            generates=max_tokens != 0,
            num_choices=body.get("n") or 1,
        )


def _choices(body: Mapping[str, Any], keywords: Mapping[str, Any], constraint_path: str) -> tuple[ChoiceRequest, ...]:
    """Return the choices of each prompt. Raises InvalidRequestError for too many prompts."""
    value, count = body["prompt"], body.get("n") or 1
    is_several = isinstance(value, list) and not _are_ids(value)
    prompts = value if is_several else [value]
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequestError.of("prompt", f"has {len(prompts):,} prompts; the limit is {MAX_PROMPTS}: send fewer")
    choices = []
    for index, prompt in enumerate(prompts):
        name = "prompt" if isinstance(prompt, str) else "prompt_ids"
        given = {name: prompt}
        path = f"prompt[{index}]" if is_several else "prompt"
        names = PromptFieldNames({**body, **given}, path, constraint_path)
        for number in range(count):
            own = {**keywords, **given, **seed_of_choice(keywords, number)}
            choices.append(ChoiceRequest(index * count + number, given, own, names))
    return tuple(choices)
