"""The response object, and the events of a streamed response, in OpenAI's order."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from gradellm import Event, Explanation
from gradellm.models import Finished, Started, Token
from gradellm.parsers.deltas import Delta
from gradellm_gateway.chat import finish_reason
from gradellm_gateway.event_objects import EventObjects, citation_objects
from gradellm_gateway.responses.output import Output
from gradellm_gateway.responses.request import ResponseRequest
from gradellm_gateway.tools.answer import AnswerForm, AnswerReader, OriginCollector

__all__ = ["ResponseAnswer"]

_UNSET_FUNCTION = {"description": None, "parameters": None, "strict": None}


class ResponseAnswer:
    """The answer to a request of the Responses API.

    Args:
        request: the request.
        model: the model's name in the response.
        request_id: of which the ids of response and items are made.
        form: how its text is read.
    """

    def __init__(self, request: ResponseRequest, model: str, request_id: str, form: AnswerForm) -> None:
        self._request, self._model, self._form = request, model, form
        self._id = f"resp_{request_id}"
        self._created_at = int(time.time())
        self._objects = EventObjects(request.extras)
        self._reader = AnswerReader(form)
        self._output = Output(request_id, self._reader.new_call_id, self._logprobs)
        self._origins = OriginCollector(form)
        self._started: Started | None = None
        self._number = 0

    # --- streamed ----------------------------------------------------------------------------------------------------

    def events(self, event: Event) -> list[dict[str, Any]]:
        """Return the events of a streamed response for one of the SDK's."""
        made = self._events(event)
        if self._request.is_explained:
            made.insert(len(made) - (event.finished is not None), {"type": "response.gradellm"} | self._own(event))
        for each in made:
            each["sequence_number"], self._number = self._number, self._number + 1
        return made

    def failure(self, error: dict[str, Any]) -> dict[str, Any]:
        """Return the event of an error, the last one, from OpenAI's error object."""
        told = error["error"]
        event = {name: told[name] for name in ("message", "param")}
        return {"type": "error", "code": told["code"] or told["type"], **event, "sequence_number": self._number}

    def _own(self, event: Event) -> dict[str, Any]:
        return {"gradellm": self._objects.of(event) | self._origins.add(event)}

    def _events(self, event: Event) -> list[dict[str, Any]]:
        if event.started is not None:
            self._started = event.started
            self._reader.start(event.started)
            begun = self._response("in_progress")
            return [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        if event.token is not None:
            deltas = self._reader.deltas(event.token)
            if self._reader.has_ended_reasoning:
                self._output.drop_tokens()
                return self._output.add(deltas)
            return self._output.add(deltas, [event.token])
        if event.finished is None:
            return []
        status = _status(event.finished)
        events = self._output.add(self._reader.rest()) + self._output.finish(status)
        return [*events, {"type": f"response.{status}", "response": self._response(status, event.finished)}]

    # --- at once -----------------------------------------------------------------------------------------------------

    def response(self, explanation: Explanation) -> dict[str, Any]:
        """Return the response object of a response that is not streamed."""
        self._started, finished = explanation.started, explanation.finished
        status = "completed" if finished is None else _status(finished)
        self._add_parts(explanation)
        self._output.finish(status)
        answer = self._response(status, finished)
        if self._request.is_explained:
            answer["gradellm"] = json.loads(explanation.to_json())
            if self._form.parser is not None:
                answer["gradellm_tool_calls"] = self._form.origins(explanation)
        if self._request.extras.citations:
            answer["gradellm_citations"] = citation_objects(explanation)
        return answer

    def _add_parts(self, explanation: Explanation) -> None:
        """Add reasoning, text and calls; text that follows the first call stands behind the calls."""
        parts = self._reader.whole(explanation)
        if parts.reasoning:
            self._output.add([Delta("reasoning", parts.reasoning)])
        content = [Delta("content", parts.content)] if parts.content or not parts.calls else []
        tokens = self._reader.content_tokens(explanation.tokens)
        is_first = not parts.calls or parts.content_start < parts.calls[0].start
        if content and is_first:
            self._output.add(content, tokens)
        for call in parts.calls:
            deltas = [Delta("name", call.name, call.index), Delta("arguments", call.arguments, call.index)]
            self._output.add(deltas)
        if content and not is_first:
            self._output.add(content, tokens)

    def _response(self, status: str, finished: Finished | None = None) -> dict[str, Any]:
        body = self._request.body
        sampling = self._started.provenance.sampling if self._started is not None else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": self._model,
            "output": list(self._output.items),
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": None if sampling is None else sampling.temperature,
            "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [_UNSET_FUNCTION | tool for tool in body.get("tools") or ()],
            "top_logprobs": body.get("top_logprobs") or 0,
            "top_p": None if sampling is None else sampling.top_p,
            "truncation": "disabled",
            "usage": None if finished is None else _usage(finished, self._reader.num_reasoning_tokens),
            "user": body.get("user"),
        }

    def _logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        if not self._request.logprobs:
            return []
        return [
            {
                **_logprob(token.text, token.logprob),
                "top_logprobs": [_logprob(other.text, other.logprob) for other in token.alternatives],
            }
            for token in tokens
        ]


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}


def _status(finished: Finished) -> str:
    return "incomplete" if finish_reason(finished) == "length" else "completed"


def _usage(finished: Finished, reasoning_tokens: int) -> dict[str, Any]:
    usage = finished.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.reused_prompt_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
