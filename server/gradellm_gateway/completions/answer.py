"""Chunks and answers of text completions, in OpenAI's format with vLLM's fields."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from gradellm import Event, Explanation
from gradellm.explanation.explanation import Collector
from gradellm.models import Token
from gradellm_gateway.chat import finish_reason, usage_object
from gradellm_gateway.completions.choices import ChoiceItem, Echo
from gradellm_gateway.completions.logprobs import LoggedToken, logprobs_object, of_completion
from gradellm_gateway.completions.request import CompletionRequest
from gradellm_gateway.event_objects import EventObjects, citation_objects
from gradellm_gateway.running_usage import RunningUsage

__all__ = ["TextAnswer"]


class TextAnswer:
    """An answer to a text completion request, streamed or at once.

    Args:
        request: the request.
        model: the model's name in the response.
        response_id: of the response.
    """

    def __init__(self, request: CompletionRequest, model: str, response_id: str) -> None:
        self._request = request
        self._head = {
            "id": response_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._choices = [_Choice(index, request) for index in range(len(request.choices))]

    def chunks(self, item: ChoiceItem) -> list[dict[str, Any]]:
        """Return the chunks for the next part of a choice; after the last part of all choices that of usage."""
        choice = self._choices[item.index]
        chunks: list[dict[str, Any]] = []
        for part in choice.parts(item.content):
            own = {"gradellm": part.pop("gradellm")} if "gradellm" in part else {}
            usage = {"usage": choice.running.to_object()} if self._request.has_running_usage else {}
            chunks.append(self._head | {"choices": [part]} | usage | own)
        if choice.usage and self._request.includes_usage and all(each.usage for each in self._choices):
            chunks.append(self._head | {"choices": [], "usage": self._usage()})
        return chunks

    def response(self, items: Sequence[ChoiceItem]) -> dict[str, Any]:
        """Return the whole answer, made of all parts of all choices."""
        contents: list[list[Echo | Event | None]] = [[] for _ in self._choices]
        for item in items:
            contents[item.index].append(item.content)
        wholes = [choice.whole(content) for choice, content in zip(self._choices, contents, strict=True)]
        answer = self._head | {"choices": wholes, "usage": self._usage()}
        if not self._request.is_explained:
            return answer
        for whole, content in zip(wholes, contents, strict=True):
            explanation = _explanation(content)
            place = answer if len(wholes) == 1 else whole  # as in answers of an upstream
            place["gradellm"] = json.loads(explanation.to_json())
            if self._request.extras.citations:
                place["gradellm_citations"] = citation_objects(explanation)
        return answer

    def _usage(self) -> dict[str, Any]:
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        usage: dict[str, Any] = {name: sum(each.usage[name] for each in self._choices) for name in counts}
        cached = sum(each.usage["prompt_tokens_details"]["cached_tokens"] for each in self._choices)
        return usage | {"prompt_tokens_details": {"cached_tokens": cached}}


class _Choice:
    """One choice: makes its parts in OpenAI's format.

    Attributes:
        usage: its token counts, once it has ended.
        running: its token counts so far.
    """

    def __init__(self, index: int, request: CompletionRequest) -> None:
        self._index, self._request = index, request
        self._objects = EventObjects(request.extras)
        self._offset = 0  # of the completion in the choice's text
        self._num_echoed = 0  # tokens of the prompt
        self._prompt_ids: list[int] | None = None  # until a part has had them
        self.usage: dict[str, Any] = {}
        self.running = RunningUsage()

    def parts(self, content: Echo | Event | None) -> list[dict[str, Any]]:
        """Return the choice of a chunk for new content, with `gradellm` in it if it is explained; or nothing."""
        if isinstance(content, Echo):
            self._offset, self._prompt_ids = len(content.text), [token.id for token in content.tokens]
            self._num_echoed = self.running.prompt_tokens = len(content.tokens)
            return [self._part(content.text, logged=content.logged)]
        if content is None:
            self.usage = _usage_of_prompt(self._num_echoed)
            return [self._part("", reason="length")]
        self.running.add(content)
        is_explained = self._request.is_explained and self._request.is_streamed
        own = {"gradellm": self._objects.of(content)} if is_explained else {}
        if content.started is not None and not self._request.echo:
            self._prompt_ids = [token.id for token in content.started.prompt_tokens]
        if content.token is not None:
            token = content.token
            return [self._part(token.text, [token], of_completion([token], offset=self._offset)) | own]
        if content.finished is not None:
            self.usage = usage_object(content.finished)
            return [self._part("", reason=finish_reason(content.finished), stop=content.finished.stop or None) | own]
        return [self._part("") | own] if own else []

    def whole(self, contents: Sequence[Echo | Event | None]) -> dict[str, Any]:
        """Return the whole choice."""
        whole = self._part("", logged=[])
        for content in contents:
            for part in self.parts(content):
                _append(whole, part)
        return whole

    def _part(
        self,
        text: str,
        tokens: Sequence[Token] = (),
        logged: Sequence[LoggedToken] | None = None,
        *,
        reason: str | None = None,
        stop: str | None = None,
    ) -> dict[str, Any]:
        has_logprobs = self._request.logprobs is not None and logged is not None
        part = {
            "index": self._index,
            "text": text,
            "logprobs": logprobs_object(logged or ()) if has_logprobs else None,
            "finish_reason": reason,
            "stop_reason": stop,
        }
        if self._request.token_ids:
            part |= {"token_ids": [token.id for token in tokens], "prompt_token_ids": self._prompt_ids}
            self._prompt_ids = None
        return part


def _append(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a part to what there is of its choice."""
    whole["text"] += part["text"]
    for name, values in (part["logprobs"] or {}).items():
        whole["logprobs"][name] += values
    whole["token_ids"] = whole.get("token_ids", []) + part.get("token_ids", [])
    for name in ("finish_reason", "stop_reason", "prompt_token_ids"):
        if part.get(name) is not None:
            whole[name] = part[name]
    if "token_ids" not in part:
        del whole["token_ids"]


def _explanation(contents: Sequence[Echo | Event | None]) -> Explanation:
    collector = Collector()
    for content in contents:
        if isinstance(content, Event) and not any((content.progress, content.prompt_progress)):
            collector.add(content)
    return collector.explanation()


def _usage_of_prompt(count: int) -> dict[str, Any]:
    counts = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return counts | {"prompt_tokens_details": {"cached_tokens": 0}}
