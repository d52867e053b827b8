"""OpenAI's chat completions, to the SDK's keywords and from its events.

What is ours stands in one object, `gradellm`: in a request the keywords of attribution (an empty one for the defaults;
without any, nothing is explained), in each chunk the event that it came of, as the SDK's dataclasses have it, in an
answer that is not streamed the whole explanation.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradellm import Event, Explanation, InvalidRequestError
from gradellm.plain import to_plain
from gradellm.requests import AttributionKeywords
from gradellm.results import Finished, Token

_KNOWN = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "seed", "stop", "logprobs", "top_logprobs", "n", "gradellm",
}  # fmt: skip
_SAMPLING = {  # the later name counts, where both are there
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    **{name: name for name in ("temperature", "top_p", "seed", "stop")},
}
_NOTED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}  # change no answer
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # accepted where they ask for nothing
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
_OWN = {*AttributionKeywords.__annotations__, "segments", "top_k", "forced_ids", "first_attribution", "timeout"}
_REASONS = {"max_new_tokens": "length"}  # every other end is "stop"


@dataclass(frozen=True)
class ChatRequest:
    """A request, understood.

    Attributes:
        keywords: of `generate`.
        is_streamed: whether chunks are wanted.
        includes_usage: whether a last chunk with counts is.
        is_explained: whether the caller knows of explanations.
        logprobs: whether log-probabilities are wanted.
    """

    keywords: dict[str, Any]
    is_streamed: bool
    includes_usage: bool
    is_explained: bool
    logprobs: bool

    @classmethod
    def of(cls, body: Any) -> ChatRequest:  # noqa: ANN401 (what a client sent)
        """Raises InvalidRequestError where it cannot be served, and says which field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        _refuse_what_is_not_done(body)
        keywords: dict[str, Any] = {"messages": _messages(body.get("messages"))}
        keywords |= {ours: body[name] for name, ours in _SAMPLING.items() if body.get(name) is not None}
        if (count := _flagged(body)) is not None:
            keywords["num_alternatives"] = count
        own = body.get("gradellm")
        if own is None:
            keywords["attribution"] = None
        elif not isinstance(own, Mapping):
            raise InvalidRequestError.of("gradellm", "must be an object with keywords of attribution")
        elif unknown := own.keys() - _OWN:
            known = ", ".join(sorted(_OWN))
            raise InvalidRequestError.of(f"gradellm.{min(unknown)}", f"is not known; there are {known}")
        else:
            keywords |= dict(own)
        options = body.get("stream_options") or {}
        return cls(
            keywords,
            is_streamed=bool(body.get("stream")),
            includes_usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
            is_explained=own is not None,
            logprobs=bool(body.get("logprobs")),
        )


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise InvalidRequestError.of("n", "only one completion is made of a prompt: leave n out, or 1")
    for name in body.keys() - _KNOWN - _NOTED:
        value = body[name]
        if value is not None and value not in _NEUTRAL.get(name, ()):
            raise InvalidRequestError.of(name, f"{json.dumps(value)[:60]} is not supported here; leave it out")


def _flagged(body: Mapping[str, Any]) -> int | None:
    count = body.get("top_logprobs")
    if count is not None and not body.get("logprobs"):
        raise InvalidRequestError.of("top_logprobs", "needs logprobs: true")
    return count


def _messages(given: Any) -> list[dict[str, str]]:  # noqa: ANN401 (what a client sent)
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InvalidRequestError.of("messages", "must be a list of messages, one at least")
    return [_message(index, message) for index, message in enumerate(given)]


def _message(index: int, message: Any) -> dict[str, str]:  # noqa: ANN401
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError.of(where, 'must have a "role" and a "content"')
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    if isinstance(content, list):  # in parts, as newer clients send it
        content = "".join(_text(f"{where}.content[{i}]", part) for i, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidRequestError.of(f"{where}.content", "must be a text")
    if message.get("tool_calls"):
        raise InvalidRequestError.of(f"{where}.tool_calls", "are not supported here")
    return {"role": role, "content": content}


def _text(where: str, part: Any) -> str:  # noqa: ANN401
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequestError.of(where, 'must be {"type": "text", "text": ...}: the model reads nothing else')
    text: str = part["text"]
    return text


@dataclass
class Completion:
    """One completion on its way to the client.

    Attributes:
        request: what was asked.
        model: what the answer calls the model.
    """

    request: ChatRequest
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """What a streaming client is sent for an event."""
        own = {"gradellm": named(event)} if self.request.is_explained else {}
        if event.started is not None:
            return [self._chunk({"role": "assistant", "content": ""}) | own]
        if event.token is not None:
            return [self._chunk({"content": event.token.text}, logprobs=self._logprobs([event.token])) | own]
        if event.finished is not None:
            made = [self._chunk({}, _reason(event.finished)) | own]
            if self.request.includes_usage:
                made.append(self._head("chat.completion.chunk") | {"choices": [], "usage": _usage(event.finished)})
            return made
        return [self._chunk({}) | own] if own else []

    def whole(self, explanation: Explanation) -> dict[str, Any]:
        """What a client is sent that does not stream."""
        finished = explanation.finished
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": explanation.text, "refusal": None},
            "logprobs": self._logprobs(explanation.tokens),
            "finish_reason": "stop" if finished is None else _reason(finished),
        }
        answer = self._head("chat.completion") | {"choices": [choice], "usage": finished and _usage(finished)}
        if self.request.is_explained:
            answer["gradellm"] = json.loads(explanation.to_json())
        return answer

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, str], reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        content = [
            {
                **_logprob(token.text, token.logprob),
                "top_logprobs": [_logprob(one.text, one.logprob) for one in token.alternatives],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def named(event: Event) -> dict[str, Any]:
    """An event as an object with one name."""
    return {name: value for name, value in to_plain(event).items() if value is not None}


def _reason(finished: Finished) -> str:
    return _REASONS.get(finished.reason or "", "stop")


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_prompt_tokens},
    }
