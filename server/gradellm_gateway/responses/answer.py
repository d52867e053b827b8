"""The response object, and the events of a streamed response, in OpenAI's order."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from gradellm import Event, Explanation
from gradellm.models import Finished, Started, Token
from gradellm_gateway.chat import finish_reason
from gradellm_gateway.event_objects import EventObjects, citation_objects
from gradellm_gateway.responses.request import ResponseRequest

__all__ = ["ResponseAnswer"]


class ResponseAnswer:
    """The answer to a request of the Responses API.

    Args:
        request: the request.
        model: the model's name in the response.
        request_id: of which the ids of response and message are made.
    """

    def __init__(self, request: ResponseRequest, model: str, request_id: str) -> None:
        self._request, self._model = request, model
        self._id, self._item_id = f"resp_{request_id}", f"msg_{request_id}"
        self._created_at = int(time.time())
        self._objects = EventObjects(request.extras)
        self._started: Started | None = None
        self._tokens: list[Token] = []
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
        return {"gradellm": self._objects.of(event)}

    def _events(self, event: Event) -> list[dict[str, Any]]:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        if event.started is not None:
            self._started = event.started
            begun = self._response("in_progress", [])
            return [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
                {"type": "response.output_item.added", "output_index": 0, "item": self._item("in_progress", [])},
                {"type": "response.content_part.added", **place, "part": self._part([])},
            ]
        if event.token is not None:
            self._tokens.append(event.token)
            logprobs = self._logprobs([event.token])
            return [{"type": "response.output_text.delta", **place, "delta": event.token.text, "logprobs": logprobs}]
        if event.finished is None:
            return []
        part, status = self._part(self._tokens), _status(event.finished)
        item = self._item(status, [part])
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            {"type": "response.output_text.done", **place, **done},
            {"type": "response.content_part.done", **place, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{status}", "response": self._response(status, [item], event.finished)},
        ]

    # --- at once -----------------------------------------------------------------------------------------------------

    def response(self, explanation: Explanation) -> dict[str, Any]:
        """Return the response object of a response that is not streamed."""
        self._started, finished = explanation.started, explanation.finished
        status = "completed" if finished is None else _status(finished)
        item = self._item(status, [self._part(explanation.tokens)])
        answer = self._response(status, [item], finished)
        if self._request.is_explained:
            answer["gradellm"] = json.loads(explanation.to_json())
        if self._request.extras.citations:
            answer["gradellm_citations"] = citation_objects(explanation)
        return answer

    def _response(self, status: str, output: list[dict[str, Any]], finished: Finished | None = None) -> dict[str, Any]:
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
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": None if sampling is None else sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [],
            "top_logprobs": body.get("top_logprobs") or 0,
            "top_p": None if sampling is None else sampling.top_p,
            "truncation": "disabled",
            "usage": None if finished is None else _usage(finished),
            "user": body.get("user"),
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, tokens: Sequence[Token]) -> dict[str, Any]:
        text = "".join(token.text for token in tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(tokens)}

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


def _usage(finished: Finished) -> dict[str, Any]:
    usage = finished.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.reused_prompt_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
