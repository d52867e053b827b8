"""A chat completion request for the upstream that is to be explained: its `gradellm` object, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from gradellm import InvalidRequestError
from gradellm.following.openai_requests import OF_THE_TEMPLATE, constrains_sampling
from gradellm.wire.keywords import AttributionKeywords, FollowKeywords
from gradellm.wire.requests import follow_request
from gradellm_gateway.documents import DOCUMENT_FIELDS, CitedDocuments, Span, with_documents
from gradellm_gateway.event_objects import Extras
from gradellm_gateway.fields import FieldNames, object_, truncated
from gradellm_gateway.upstream.prompt import ChatMessage

__all__ = ["FollowedRequest"]

_FIELDS = {*AttributionKeywords.__annotations__, *Extras.__annotations__, *DOCUMENT_FIELDS, "segments"}


@dataclass(frozen=True)
class FollowedRequest:
    """A validated request.

    Attributes:
        body: the request as it came.
        keywords: of its attribution, for the SDK.
        extras: what it asks for beside events.
        documents: that its answer can cite.
        segments: of its messages, by name.
        messages: their texts.
        plain_messages: for the explainer to render; None for a prompt that it cannot make.
        is_streamed: whether the answer is chunks.
        has_free_logprobs: whether log-probabilities of the answer are those of the whole vocabulary.
    """

    body: Mapping[str, Any]
    keywords: dict[str, Any]
    extras: Extras
    documents: CitedDocuments
    segments: dict[str, Span]
    messages: tuple[ChatMessage, ...]
    plain_messages: tuple[dict[str, str], ...] | None
    is_streamed: bool
    has_free_logprobs: bool

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> FollowedRequest:
        """Validate a request with a `gradellm` object. Raises InvalidRequestError, which names the field."""
        own = body["gradellm"]
        object_("gradellm", own)
        if unknown := own.keys() - _FIELDS:
            names = ", ".join(sorted(_FIELDS))
            raise InvalidRequestError.of(f"gradellm.{truncated(min(unknown))}", f"is not known; there are {names}")
        messages = body.get("messages")
        texts = tuple(map(ChatMessage.of, messages if isinstance(messages, list) else ()))
        own, documents = with_documents(own, [each.content for each in texts])
        extras = Extras.of(own, "gradellm.{}")
        is_streamed = body.get("stream") is True
        if extras.pictures and not is_streamed:
            raise InvalidRequestError.of(
                "gradellm.pictures", "needs stream: true; POST finished answers to /v1/gradellm/pictures"
            )
        left_out = {*Extras.__annotations__, "segments"}
        keywords = {name: value for name, value in own.items() if name not in left_out}
        try:
            follow_request(None, cast("FollowKeywords", {**keywords, "prompt_ids": [0]}))
        except InvalidRequestError as error:
            raise FieldNames(body, attribution="gradellm.{}", gradellm_fields=_FIELDS).error(error) from error
        return cls(
            body,
            keywords,
            extras,
            documents,
            _segments(own.get("segments"), texts),
            texts,
            _plain(body, texts),
            is_streamed,
            not constrains_sampling(body),
        )


def _segments(value: object, messages: tuple[ChatMessage, ...]) -> dict[str, Span]:
    if value is None:
        return {}
    object_("gradellm.segments", value)
    found: dict[str, Span] = {}
    for name, span in value.items() if isinstance(value, Mapping) else ():
        path = f"gradellm.segments.{truncated(name)}"
        if not (isinstance(span, list | tuple) and len(span) == 3 and all(type(each) is int for each in span)):
            raise InvalidRequestError.of(path, "must be [message, start, end]")
        message, start, end = span
        if not 0 <= message < len(messages):
            raise InvalidRequestError.of(path, f"is in message {message}; there are {len(messages)}, from 0")
        if not 0 <= start < end <= len(messages[message].content):
            length = len(messages[message].content)
            raise InvalidRequestError.of(
                path, f"[{start}, {end}] is no part of message {message}, of {length} characters"
            )
        found[name] = (message, start, end)
    return found


def _plain(body: Mapping[str, Any], texts: tuple[ChatMessage, ...]) -> tuple[dict[str, str], ...] | None:
    """Return the messages of a chat that any engine renders alike: texts only, without tools."""
    messages = body.get("messages")
    if not isinstance(messages, list) or any(body.get(name) for name in OF_THE_TEMPLATE):
        return None
    if body.get("add_generation_prompt") is False:
        return None
    plain = []
    for message, text in zip(messages, texts, strict=True):
        others = {name for name, value in message.items() if value} if isinstance(message, Mapping) else {"?"}
        if text.role not in ("system", "user", "assistant") or others - {"role", "content"} or len(text.parts) != 1:
            return None
        plain.append({"role": text.role, "content": text.content})
    return tuple(plain)
