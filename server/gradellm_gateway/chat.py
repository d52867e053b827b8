"""Converts OpenAI chat completion requests to SDK keywords, and SDK events to chunks and responses.

The extension is one object, `gradellm`. In a request it holds attribution keywords ({} for the defaults; without the
object nothing is explained); in a chunk the SDK's event, in a response that is not streamed the whole explanation.
With `pictures`, `citations` or `documents` in it, more is sent beside these (event_objects.py, documents.py).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradellm import Event, Explanation, InvalidRequestError
from gradellm.explanation.explanation import Collector
from gradellm.models import Finished, Token
from gradellm.wire.keywords import AttributionKeywords
from gradellm_gateway.documents import CitedDocuments, source_event, with_documents
from gradellm_gateway.event_objects import EventObjects, Extras, citation_objects
from gradellm_gateway.fields import FieldNames, check_fields, messages, truncated
from gradellm_gateway.tools.answer import AnswerForm, AnswerReader
from gradellm_gateway.tools.request import ToolRequest

_GRADELLM_FIELDS = {
    *AttributionKeywords.__annotations__,
    *Extras.__annotations__,
    "documents",
    "segments",
    "top_k",
    "forced_ids",
    "first_attribution",
    "timeout",
}
_SAMPLING = ("temperature", "top_p", "seed", "stop")
_LENGTHS = ("max_completion_tokens", "max_tokens")  # the first has precedence
REPLACEMENT = "\ufffd"  # stands for bytes that are not a complete character
_REASONS = {"max_new_tokens": "length"}  # every other finish reason is "stop"


@dataclass(frozen=True)
class ChatRequest:
    """A validated chat completion request.

    Attributes:
        keywords: for the SDK's `generate`.
        names: maps these keywords to the request's field names.
        is_streamed: whether the response is chunks.
        includes_usage: whether a last chunk reports usage.
        is_explained: whether the request has a `gradellm` object.
        extras: what it asks for beside events.
        documents: that its answer can cite.
        logprobs: whether log-probabilities are returned.
        tools: its tools.
    """

    keywords: dict[str, Any]
    names: FieldNames
    is_streamed: bool
    includes_usage: bool
    is_explained: bool
    extras: Extras
    documents: CitedDocuments
    logprobs: bool
    tools: ToolRequest = field(default_factory=ToolRequest)

    @classmethod
    def from_json(cls, body: Any) -> ChatRequest:  # noqa: ANN401 (whatever a client sent)
        """Validate a request's JSON value. Raises InvalidRequestError, which names the field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        check_fields(body)
        length = next((name for name in _LENGTHS if body.get(name) is not None), _LENGTHS[0])
        keywords: dict[str, Any] = {"messages": messages(body.get("messages"))}
        keywords |= {name: body[name] for name in _SAMPLING if body.get(name) is not None}
        if body.get(length) is not None:
            keywords["max_new_tokens"] = body[length]
        if (count := body.get("top_logprobs")) is not None:
            if not body.get("logprobs"):
                raise InvalidRequestError.of("top_logprobs", "needs logprobs: true")
            keywords["num_alternatives"] = count
        own, documents = body.get("gradellm"), CitedDocuments({})
        if own is not None:
            own, documents = with_documents(own, [message["content"] for message in keywords["messages"]])
        keywords |= _attribution(own)
        extras = Extras.of(own or {}, "gradellm.{}")
        if extras.pictures and body.get("stream") is not True:
            raise InvalidRequestError.of(
                "gradellm.pictures", "needs stream: true; POST finished answers to /v1/gradellm/pictures"
            )
        return cls(
            keywords,
            names=FieldNames(
                {**body, "gradellm": own},
                {"max_new_tokens": length, "num_alternatives": "top_logprobs"},
                attribution="gradellm.{}",
                gradellm_fields=_GRADELLM_FIELDS,
            ),
            is_streamed=body.get("stream") is True,
            includes_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            is_explained=own is not None,
            extras=extras,
            documents=documents,
            logprobs=body.get("logprobs") is True,
            tools=ToolRequest.of(body),
        )


def _attribution(own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the SDK's keywords of a request's `gradellm` object. Raises InvalidRequestError for an unknown one."""
    if own is None:
        return {"attribution": None}
    if unknown := own.keys() - _GRADELLM_FIELDS:
        names = ", ".join(sorted(_GRADELLM_FIELDS))
        raise InvalidRequestError.of(f"gradellm.{truncated(min(unknown))}", f"is not known; there are {names}")
    return {name: value for name, value in own.items() if name not in Extras.__annotations__}


@dataclass
class Completion:
    """A completion in OpenAI's format.

    Attributes:
        request: the request that it responds to.
        model: the model's name in the response.
        form: how its text is read.
        id: OpenAI's completion id.
        created: seconds since the epoch.
    """

    request: ChatRequest
    model: str
    form: AnswerForm = field(default_factory=AnswerForm)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _is_in_character: bool = False  # the last token ended inside a multi-byte character

    def __post_init__(self) -> None:
        self._objects = EventObjects(self.request.extras)
        self._reader = AnswerReader(self.form)
        self._collector = Collector() if self.form.parser is not None and self.request.is_explained else None
        self._offset: int | None = None  # of the answer in the completion, which begins with forced tokens

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """The chunks for one event of a streamed completion."""
        own = {"gradellm": self._objects.of(event)} if self.request.is_explained else {}
        if event.token is not None and self._offset is None:
            self._offset = event.token.start
        if self._collector is not None and any((event.started, event.token, event.attribution, event.finished)):
            self._collector.add(event)
        if event.started is not None:
            self._reader.start(event.started)
            return [self._chunk({"role": "assistant", "content": ""}) | own]
        if event.token is not None:
            delta, logprobs = self._reader.add(event.token), self._logprobs([event.token])
            is_shown = delta or own or logprobs or self.form.parser is None
            return [self._chunk(delta or {"content": ""}, logprobs=logprobs) | own] if is_shown else []
        if event.finished is not None:
            rest = self._reader.finish()
            last = [self._chunk(rest)] if rest else []
            if self._collector is not None:
                own["gradellm"]["tool_calls"] = self.form.origins(self._collector.explanation())
            citations = own["gradellm"]["citations"] if self.request.extras.citations else []
            delta = {"annotations": self._annotations(citations)} if self.request.extras.citations else {}
            sources = self.request.documents.sources(citations)
            chunks = last + [self._chunk({}) | source_event(source) for source in sources]
            chunks.append(self._chunk(delta, self._reason(event.finished)) | own)
            if self.request.includes_usage:
                chunks.append(self._head("chat.completion.chunk") | {"choices": [], "usage": _usage(event.finished)})
            return chunks
        return [self._chunk({}) | own] if own else []

    def response(self, explanation: Explanation) -> dict[str, Any]:
        """The response of a completion that is not streamed."""
        finished = explanation.finished
        message = self._reader.message(explanation)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", **message, "refusal": None},
            "logprobs": self._logprobs(explanation.tokens),
            "finish_reason": "stop" if finished is None else self._reason(finished),
        }
        answer = self._head("chat.completion") | {"choices": [choice], "usage": finished and _usage(finished)}
        if self.request.is_explained:
            answer["gradellm"] = json.loads(explanation.to_json())
            if self.form.parser is not None:
                answer["gradellm_tool_calls"] = self.form.origins(explanation)
        if self.request.extras.citations:
            citations = answer["gradellm_citations"] = citation_objects(explanation)
            self._offset = explanation.tokens[0].start if explanation.tokens else None
            choice["message"] |= {"annotations": self._annotations(citations)}
            answer["sources"] = self.request.documents.sources(citations)
        return answer

    def _reason(self, finished: Finished) -> str:
        """As OpenAI's: "tool_calls", unless the request names the tool, or the text ended early."""
        reason = _REASONS.get(finished.reason or "", "stop")
        is_called = self._reader.has_calls and self.form.request.choice != "named"
        return "tool_calls" if is_called and reason == "stop" else reason

    def _annotations(self, citations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        start, length = self._reader.content_span
        return self.request.documents.annotations(citations, (self._offset or 0) + start, length)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": [self._logprob(token) for token in tokens], "refusal": None}

    def _logprob(self, token: Token) -> dict[str, Any]:
        """A token's entry. The last token of a multi-byte character has a text, but its own bytes are unknown."""
        is_whole = not self._is_in_character
        self._is_in_character = token.text == "" and not token.special
        return {
            "token": token.text,
            "logprob": token.logprob,
            "bytes": _bytes(token.text) if is_whole else None,
            "top_logprobs": [
                {"token": other.text, "logprob": other.logprob, "bytes": _bytes(other.text)}
                for other in token.alternatives
            ],
        }


def _bytes(text: str) -> list[int] | None:
    """A token's bytes; None if its text does not determine them: part of a character, or a special token."""
    return None if not text or REPLACEMENT in text else list(text.encode())


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_prompt_tokens},
    }
