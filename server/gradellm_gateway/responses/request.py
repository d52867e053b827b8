"""Requests of the Responses API, validated and converted to SDK keywords."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradellm import InvalidRequestError
from gradellm_gateway.chat import GRADELLM_FIELDS, attribution_keywords
from gradellm_gateway.documents import DOCUMENT_FIELDS
from gradellm_gateway.errors import limit_count
from gradellm_gateway.event_objects import Extras
from gradellm_gateway.fields import (
    FIELDS,
    MAX_MESSAGES,
    Check,
    FieldNames,
    boolean,
    check_fields,
    integer,
    list_,
    messages,
    object_,
    only,
    quoted,
    text,
    truncated,
)
from gradellm_gateway.openapi.schemas import described
from gradellm_gateway.responses.conversation import Conversation
from gradellm_gateway.sampling_fields import SAMPLING_FIELDS, SAMPLING_NAMES, sampling_keywords
from gradellm_gateway.structured.output_format import text_format
from gradellm_gateway.tools.request import ToolRequest

__all__ = ["RESPONSE_FIELDS", "ResponseRequest"]

LOGPROBS = "message.output_text.logprobs"  # the value of `include` that asks for log-probabilities
MAX_LOGPROBS = 20
_OWN_FIELDS = GRADELLM_FIELDS - DOCUMENT_FIELDS


@described({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]})
def _input(path: str, value: object) -> None:
    if not isinstance(value, str | list):
        raise InvalidRequestError.of(path, f"must be a text or a list of items, not {quoted(value)}")
    limit_count(path, value, MAX_MESSAGES, "items")


@described({"type": "array", "items": {"type": "string", "enum": [LOGPROBS]}})
def _include(path: str, value: object) -> None:
    list_(path, value)
    for index, each in enumerate(value if isinstance(value, list) else ()):
        if each != LOGPROBS:
            raise InvalidRequestError.of(f"{path}[{index}]", f'{quoted(each)} is not supported here; "{LOGPROBS}" is')


@described({"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS})
def _top_logprobs(path: str, value: object) -> None:
    integer(path, value)
    if isinstance(value, int) and not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError.of(path, f"must be between 0 and {MAX_LOGPROBS}, not {quoted(value)}")


@described({"type": "null"})
def _nothing_stored(path: str, value: object) -> None:
    raise InvalidRequestError.of(path, "needs stored responses, and nothing is stored here: send the conversation")


@described({"type": "boolean", "enum": [False]})
def _store(path: str, value: object) -> None:
    boolean(path, value)
    if value:
        raise InvalidRequestError.of(path, "nothing is stored here: leave store out, or set it to false")


@described(
    {
        "type": "object",
        "properties": {"format": {"type": ["object", "null"]}, "verbosity": {"enum": ["medium", None]}},
        "additionalProperties": False,
    }
)
def _text_config(path: str, value: object) -> None:
    object_(path, value)
    checks = {"format": object_, "verbosity": only(text, "medium")}
    for name, given in value.items() if isinstance(value, Mapping) else ():
        if name not in checks:
            raise InvalidRequestError.of(f"{path}.{truncated(name)}", f"{quoted(given)} is not supported here")
        if given is not None:
            checks[name](f"{path}.{name}", given)


RESPONSE_FIELDS: dict[str, Check] = {
    "model": text,
    "input": _input,
    "instructions": text,
    "max_output_tokens": integer,
    "include": _include,
    "top_logprobs": _top_logprobs,
    **SAMPLING_FIELDS,
    **{
        name: FIELDS[name]
        for name in (
            *("stream", "gradellm", "tools", "tool_choice", "parallel_tool_calls", "include_reasoning"),
            "structured_outputs",
        )
    },
    "text": _text_config,
    # Accepted without effect on the response.
    **{
        name: FIELDS[name]
        for name in (
            *("metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
            *("service_tier", "stream_options"),
        )
    },
    # Not supported: accepted only with the value that leaves it off.
    "store": _store,
    "previous_response_id": _nothing_stored,
    "conversation": _nothing_stored,
    "background": only(boolean, False),
    "truncation": only(text, "disabled"),
    "reasoning": only(object_, {}, {"effort": "none"}),
}
"""Checks by field name. null is the same as absent, except for `input`."""


@dataclass(frozen=True)
class ResponseRequest:
    """A validated request of the Responses API.

    Attributes:
        body: the caller's request.
        keywords: for the SDK's `generate`.
        names: maps these keywords to the request's field names.
        is_streamed: whether the response is events.
        is_explained: whether the request has a `gradellm` object.
        extras: what it asks for beside events.
        logprobs: whether log-probabilities are returned.
        tools: its tools, in the form of chats.
    """

    body: Mapping[str, Any]
    keywords: dict[str, Any]
    names: ResponseFieldNames
    is_streamed: bool
    is_explained: bool
    extras: Extras
    logprobs: bool
    tools: ToolRequest

    @classmethod
    def from_json(cls, body: Any) -> ResponseRequest:  # noqa: ANN401 (whatever a client sent)
        """Validate a request's JSON value. Raises InvalidRequestError, which names the field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        check_fields(body, RESPONSE_FIELDS)
        if body.get("input") is None:
            raise InvalidRequestError.of("input", "is missing: send a text, or a list of items")
        tools = ToolRequest.of(body, is_flat=True)
        constraint, constraint_path = text_format(body)
        tools.check_constraint(constraint_path)
        conversation = Conversation(body)
        names = ResponseFieldNames(body, conversation, constraint_path)
        try:
            checked = messages(conversation.messages)
        except InvalidRequestError as error:
            raise names.error(error) from error
        own, logprobs = body.get("gradellm"), LOGPROBS in (body.get("include") or ())
        if body.get("top_logprobs") and not logprobs:
            raise InvalidRequestError.of("top_logprobs", f'needs include: ["{LOGPROBS}"]')
        extras = Extras.of(own or {}, "gradellm.{}")
        is_streamed = body.get("stream") is True
        if extras.pictures and not is_streamed:
            raise InvalidRequestError.of("gradellm.pictures", "needs stream: true")
        keywords: dict[str, Any] = {"messages": checked, **sampling_keywords(body), **constraint}
        if body.get("max_output_tokens") is not None:
            keywords["max_new_tokens"] = body["max_output_tokens"]
        if body.get("top_logprobs"):
            keywords["num_alternatives"] = body["top_logprobs"]
        keywords |= attribution_keywords(own, keywords, _OWN_FIELDS)
        return cls(body, keywords, names, is_streamed, own is not None, extras, logprobs, tools)


class ResponseFieldNames(FieldNames):
    """Maps field names of the SDK and the server to the caller's: messages are items of `input`, or `instructions`.

    Args:
        body: the caller's request.
        conversation: its messages.
        constraint: path of what constrains the response; empty where nothing does.
    """

    def __init__(self, body: Mapping[str, Any], conversation: Conversation, constraint: str = "") -> None:
        super().__init__(
            {**body, "messages": True},
            {**SAMPLING_NAMES, "max_new_tokens": "max_output_tokens", "num_alternatives": "top_logprobs"},
            attribution="gradellm.{}",
            gradellm_fields=_OWN_FIELDS - sampling_keywords(body).keys(),
            constraint=constraint or "tools",  # of required calls
        )
        self._conversation = conversation

    def path(self, field: str) -> str:
        """See `FieldNames`; fields of functions stand beside their type."""
        return self._conversation.path(re.sub(r"^(tools\[\d+\])\.function\b", r"\1", super().path(field)))
