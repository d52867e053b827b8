"""Converts OpenAI chat completion requests to SDK keywords, and SDK events to chunks and responses.

The extension is one object, `gradellm`. In a request it holds attribution keywords ({} for the defaults; without the
object nothing is explained); in a chunk the SDK's event, in a response that is not streamed the whole explanation.
With `pictures`, `citations` or `documents` in it, more is sent beside these (event_objects.py, documents.py).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradellm import Event, Explanation, InvalidRequestError
from gradellm.models import Finished, Started, Token
from gradellm.wire.keywords import AttributionKeywords
from gradellm_gateway.documents import DOCUMENT_FIELDS, CitedDocuments, source_event, with_documents
from gradellm_gateway.event_objects import EventObjects, Extras, citation_objects
from gradellm_gateway.fields import FieldNames, check_fields, messages, truncated
from gradellm_gateway.running_usage import usage_options
from gradellm_gateway.sampling_fields import SAMPLING_NAMES, sampling_keywords
from gradellm_gateway.structured.output_format import structured_output
from gradellm_gateway.tools.answer import AnswerForm, AnswerReader, OriginCollector
from gradellm_gateway.tools.request import ToolRequest

GRADELLM_FIELDS = {
    *AttributionKeywords.__annotations__,
    *Extras.__annotations__,
    *DOCUMENT_FIELDS,
    "segments",
    "top_k",
    "forced_ids",
    "first_attribution",
    "timeout",
}
"""Names in a request's `gradellm` object."""
_TEMPLATE = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")
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
        has_running_usage: whether each other chunk does, too, of its choice so far.
        is_explained: whether the request has a `gradellm` object.
        extras: what it asks for beside events.
        documents: that its answer can cite.
        logprobs: whether log-probabilities are returned.
        num_choices: how many completions are generated.
        token_ids: whether the ids of prompt and completion are returned.
        tools: its tools.
    """

    keywords: dict[str, Any]
    names: FieldNames
    is_streamed: bool
    includes_usage: bool
    has_running_usage: bool
    is_explained: bool
    extras: Extras
    documents: CitedDocuments
    logprobs: bool
    token_ids: bool
    num_choices: int
    tools: ToolRequest = field(default_factory=ToolRequest)

    @classmethod
    def from_json(cls, body: Any) -> ChatRequest:  # noqa: ANN401 (whatever a client sent)
        """Validate a request's JSON value. Raises InvalidRequestError, which names the field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        check_fields(body)
        length = next((name for name in _LENGTHS if body.get(name) is not None), _LENGTHS[0])
        keywords: dict[str, Any] = {"messages": messages(body.get("messages"))}
        keywords |= {name: body[name] for name in _TEMPLATE if body.get(name) is not None}
        keywords |= sampling_keywords(body)
        if body.get(length) is not None:
            keywords["max_new_tokens"] = body[length]
        if (count := body.get("top_logprobs")) is not None:
            if not body.get("logprobs"):
                raise InvalidRequestError.of("top_logprobs", "needs logprobs: true")
            keywords["num_alternatives"] = count
        own, documents = body.get("gradellm"), CitedDocuments({})
        if own is not None:
            own, documents = with_documents(own, [message["content"] for message in keywords["messages"]])
        keywords |= attribution_keywords(own, keywords)
        constraint, constraint_path = structured_output(body)
        keywords |= constraint
        tools = ToolRequest.of(body)
        tools.check_constraint(constraint_path)
        extras = Extras.of(own or {}, "gradellm.{}")
        if extras.pictures and body.get("stream") is not True:
            raise InvalidRequestError.of(
                "gradellm.pictures", "needs stream: true; POST finished answers to /v1/gradellm/pictures"
            )
        return cls(
            keywords,
            names=FieldNames(
                {**body, "gradellm": own},
                {**SAMPLING_NAMES, "max_new_tokens": length, "num_alternatives": "top_logprobs"},
                attribution="gradellm.{}",
                gradellm_fields=GRADELLM_FIELDS - sampling_keywords(body).keys(),
                constraint=constraint_path or "tools",  # of required calls
            ),
            is_streamed=body.get("stream") is True,
            **usage_options(body),
            is_explained=own is not None,
            extras=extras,
            documents=documents,
            logprobs=body.get("logprobs") is True,
            token_ids=body.get("return_token_ids") is True,
            num_choices=body.get("n") or 1,
            tools=tools,
        )


def attribution_keywords(
    own: Mapping[str, Any] | None, keywords: Mapping[str, Any], known: Collection[str] = frozenset(GRADELLM_FIELDS)
) -> dict[str, Any]:
    """Return the SDK's keywords of a request's `gradellm` object.

    Raises InvalidRequestError for one not in `known`, and for one that is among the request's `keywords`.
    """
    if own is None:
        return {"attribution": None}
    if unknown := own.keys() - known:
        names = ", ".join(sorted(known))
        raise InvalidRequestError.of(f"gradellm.{truncated(min(unknown))}", f"is not known; there are {names}")
    if twice := next((name for name in own if name in keywords), None):
        raise InvalidRequestError.of(f"gradellm.{twice}", f"is given as {twice}, too: give it once")
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
        index: its place among the choices of its request.
    """

    request: ChatRequest
    model: str
    form: AnswerForm = field(default_factory=AnswerForm)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    index: int = 0
    _is_in_character: bool = False  # the last token ended inside a multi-byte character

    def __post_init__(self) -> None:
        self._objects = EventObjects(self.request.extras)
        self._reader = AnswerReader(self.form)
        self._origins = OriginCollector(self.form) if self.request.is_explained else None
        self._offset: int | None = None  # of the answer in the completion, which begins with forced tokens

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """The chunks for one event of a streamed completion."""
        own = {"gradellm": self._objects.of(event)} if self.request.is_explained else {}
        if event.token is not None and self._offset is None:
            self._offset = event.token.start
        if self._origins is not None:
            own["gradellm"] |= self._origins.add(event)
        if event.started is not None:
            self._reader.start(event.started)
            return [self._chunk({"role": "assistant", "content": ""}) | self._prompt_ids(event.started) | own]
        if event.token is not None:
            delta, tokens = self._reader.add(event.token), [event.token]
            logprobs, ids = self._logprobs(tokens), self._token_ids(tokens)
            if not (delta or own or logprobs or ids) and self.form.parser is not None:
                return []
            chunk = self._chunk(delta or {"content": ""}, logprobs=logprobs)
            chunk["choices"][0] |= ids
            return [chunk | own]
        if event.finished is not None:
            rest = self._reader.finish()
            last = [self._chunk(rest)] if rest else []
            citations = own["gradellm"]["citations"] if self.request.extras.citations else []
            delta = {"annotations": self._annotations(citations)} if self.request.extras.citations else {}
            sources = self.request.documents.sources(citations)
            chunks = last + [self._chunk({}) | source_event(source) for source in sources]
            chunks.append(self._chunk(delta, self._reason(event.finished)) | own)
            return chunks
        return [self._chunk({}) | own] if own else []

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk, of all choices."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage}

    def response(self, explanation: Explanation) -> dict[str, Any]:
        """The response of a completion that is not streamed."""
        finished = explanation.finished
        message = self._reader.message(explanation)
        choice: dict[str, Any] = {
            "index": self.index,
            "message": {"role": "assistant", **message, "refusal": None},
            "logprobs": self._logprobs(explanation.tokens),
            "finish_reason": "stop" if finished is None else self._reason(finished),
            **self._token_ids(explanation.tokens),
        }
        answer = self._head("chat.completion") | {"choices": [choice], "usage": finished and usage_object(finished)}
        answer |= self._prompt_ids(explanation.started)
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
        reason = finish_reason(finished)
        is_called = self._reader.has_calls and self.form.request.choice != "named"
        return "tool_calls" if is_called and reason == "stop" else reason

    def _annotations(self, citations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        start, length = self._reader.content_span
        return self.request.documents.annotations(citations, (self._offset or 0) + start, length)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
        choice = {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _prompt_ids(self, started: Started) -> dict[str, Any]:
        """The ids of the prompt, where the request asks for ids, in vLLM's field."""
        return {"prompt_token_ids": [token.id for token in started.prompt_tokens]} if self.request.token_ids else {}

    def _token_ids(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The ids of a choice's tokens, likewise."""
        return {"token_ids": [token.id for token in tokens]} if self.request.token_ids else {}

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


def finish_reason(finished: Finished) -> str:
    """Return OpenAI's finish reason."""
    return _REASONS.get(finished.reason or "", "stop")


def usage_object(finished: Finished) -> dict[str, Any]:
    """Return OpenAI's usage of one completion."""
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_prompt_tokens},
    }
