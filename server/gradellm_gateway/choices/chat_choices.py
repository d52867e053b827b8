"""The choices of a chat completion: chunks with an index, and one response with one usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradellm import Event, Explanation
from gradellm_gateway.chat import ChatRequest, Completion, usage_object
from gradellm_gateway.running_usage import RunningUsage
from gradellm_gateway.sampling_fields import seed_of_choice
from gradellm_gateway.tools.answer import AnswerForm


def choice_keywords(request: ChatRequest, tools: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The SDK's keywords of each choice, those of its tools included: with a seed, that of choice i is seed + i."""
    keywords = {**request.keywords, **(tools or {})}
    return [{**keywords, **seed_of_choice(keywords, index)} for index in range(request.num_choices)]


class ChatChoices:
    """The choices of one request in OpenAI's format.

    With several choices, a choice has what belongs to it alone: `gradellm`, `gradellm_citations` and `sources`.
    """

    def __init__(self, request: ChatRequest, model: str, completion_id: str, form: AnswerForm | None = None) -> None:
        first = Completion(request, model, form or AnswerForm(), completion_id)
        others = [replace(first, index=index) for index in range(1, request.num_choices)]
        self._completions = [first, *others]
        self._includes_usage = request.includes_usage
        self._running = [RunningUsage() for _ in self._completions] if request.has_running_usage else []
        self._usage: dict[int, dict[str, Any]] = {}  # of choices that have finished

    def chunks(self, item: tuple[int, Event]) -> list[dict[str, Any]]:
        """The chunks for one event of a choice; the usage of all follows the last one."""
        index, event = item
        completion = self._completions[index]
        chunks = completion.chunks(event)
        if self._running:
            self._running[index].add(event)
            chunks = [chunk | {"usage": self._running[index].to_object()} for chunk in chunks]
        if event.finished is not None and self._includes_usage:
            self._usage[index] = usage_object(event.finished)
            if len(self._usage) == len(self._completions):
                chunks.append(completion.usage_chunk(_total([self._usage[i] for i in sorted(self._usage)])))
        return chunks

    def response(self, explanations: Sequence[Explanation]) -> dict[str, Any]:
        """The response of choices that are not streamed."""
        answers = [
            completion.response(explanation)
            for completion, explanation in zip(self._completions, explanations, strict=True)
        ]
        if len(answers) == 1:
            return answers[0]
        shared = ("id", "object", "created", "model", "prompt_token_ids")
        joined: dict[str, Any] = {name: answers[0][name] for name in shared if name in answers[0]}
        choices = []
        for answer in answers:
            own = {name: value for name, value in answer.items() if name not in (*joined, "choices", "usage")}
            choices.append({**answer["choices"][0], **own})
        usages = [answer["usage"] for answer in answers if answer["usage"] is not None]
        return {**joined, "choices": choices, "usage": _total(usages) if usages else None}


def _total(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The usage of all choices: the prompt, which they share, counts once."""
    first, completion_tokens = usages[0], sum(usage["completion_tokens"] for usage in usages)
    return {
        **first,
        "completion_tokens": completion_tokens,
        "total_tokens": first["prompt_tokens"] + completion_tokens,
    }
