"""An answer in OpenAI's form: content, reasoning and calls of tools, from the tokens of a completion."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from gradellm import Event, Explanation
from gradellm.explanation.explanation import Collector
from gradellm.explanation.tool_calls import tool_calls
from gradellm.models import Started, Token
from gradellm.parsers.answer import AnswerParser
from gradellm.parsers.deltas import Answer, Delta
from gradellm.parsers.registry import MARKER_TEXTS, call_parser, reasoning_parser
from gradellm_gateway.tools.request import ToolRequest

__all__ = ["AnswerForm", "AnswerReader", "OriginCollector"]

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class AnswerForm:
    """How the answer to a request is read.

    Attributes:
        request: the request's tools.
        parser: the form of calls; None where calls are text.
        reasoning: the form of reasoning.
        marker_ids: ids of markers that are tokens of their own.
    """

    request: ToolRequest = field(default_factory=ToolRequest)
    parser: str | None = None
    reasoning: str = "none"
    marker_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def marker_texts(self) -> dict[int, str]:
        """The texts of markers that are tokens of their own, by id."""
        return {token_id: text for text, token_id in self.marker_ids.items()}

    def origins(self, explanation: Explanation) -> list[dict[str, Any]]:
        """Return each call with what its name and arguments came from; none where calls are text."""
        if self.parser is None:
            return []
        found = tool_calls(
            explanation,
            parser=self.parser,
            reasoning=self.reasoning,
            tools=self.request.definitions,
            special_texts=self.marker_texts,
        )
        return [call.to_dict() for call in found[: None if self.request.is_parallel else 1]]


class OriginCollector:
    """Collects the events of a stream for what its calls came from."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._collector = Collector() if form.parser is not None else None

    def add(self, event: Event) -> dict[str, Any]:
        """Add an event; return what the object `gradellm` of the last one has beside it."""
        if self._collector is None or not any((event.started, event.token, event.attribution, event.finished)):
            return {}
        self._collector.add(event)
        return {} if event.finished is None else {"tool_calls": self._form.origins(self._collector.explanation())}


class AnswerReader:
    """Reads one answer, token by token: as deltas of its parts, or in the form of a chat's message."""

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._parser: AnswerParser | None = None
        self._texts = form.marker_texts
        self._num_calls = 0
        self._num_inserted = 0  # code points of markers that the completion's text does not have
        self._ends = [0]  # of the tokens in the text that is parsed

    @property
    def has_calls(self) -> bool:
        """Whether a call has been returned."""
        return self._num_calls > 0

    def start(self, started: Started) -> None:
        """Begin with the prompt: it may open reasoning."""
        self._begin(started.prompt_text)
        own = {token.id: token.text for token in started.prompt_tokens if token.special and token.text in MARKER_TEXTS}
        self._texts = own | self._form.marker_texts

    def deltas(self, token: Token) -> list[Delta]:
        """Return what a token adds to the parts of the answer that the request asks for."""
        marker = "" if token.text or not token.special else self._texts.get(token.id, "")
        self._num_inserted += len(marker)
        text = token.text or marker
        self._ends.append(self._ends[-1] + len(text))
        return self._chosen(self._running.push(text))

    def rest(self) -> list[Delta]:
        """Return the rest of the answer, at its end."""
        return self._chosen(self._running.finish())

    def whole(self, explanation: Explanation) -> Answer:
        """Return a whole answer, with the parts that the request asks for; malformed calls are text."""
        self.start(explanation.started)
        for token in explanation.tokens:
            self.deltas(token)
        self.rest()
        answer, request = self._running.answer(), self._form.request
        calls = answer.calls[: None if request.is_parallel else 1]
        self._num_calls = len(calls)
        return replace(answer, calls=calls, reasoning=answer.reasoning if request.includes_reasoning else "")

    def add(self, token: Token) -> dict[str, Any]:
        """Return what a token adds, as a delta of a message."""
        return self._delta(self.deltas(token))

    def finish(self) -> dict[str, Any]:
        """Return the rest of the answer, as a delta of a message."""
        return self._delta(self.rest())

    def message(self, explanation: Explanation) -> dict[str, Any]:
        """Return a whole answer as fields of a message: content, reasoning and calls; malformed calls are text."""
        answer = self.whole(explanation)
        made: dict[str, Any] = {"content": answer.content or (None if answer.calls else "")}
        if answer.reasoning:
            made |= {"reasoning": answer.reasoning, "reasoning_content": answer.reasoning}
        if answer.calls:
            made["tool_calls"] = [
                {
                    "id": self.new_call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        return made

    @property
    def has_ended_reasoning(self) -> bool:
        """Whether the last token ends the reasoning."""
        return 0 < self._ends[-1] <= self._running.reasoning_span[1]

    def content_tokens(self, tokens: Sequence[Token]) -> list[Token]:
        """Return the finished answer's tokens that do not lie in its reasoning or in a call."""
        answer = self._running.answer()
        spans = [answer.reasoning_span, *((call.start, call.end) for call in answer.calls)]
        return [
            token
            for token, start, end in zip(tokens, self._ends, self._ends[1:], strict=False)
            if not any(first <= start < last and end <= last for first, last in spans)
        ]

    @property
    def num_reasoning_tokens(self) -> int:
        """The number of the finished answer's tokens that have a part of its reasoning."""
        first, last = self._running.answer().reasoning_span
        spans = zip(self._ends, self._ends[1:], strict=False)
        return sum(start < min(end, last) and end > first for start, end in spans)

    @property
    def content_span(self) -> tuple[int, int]:
        """The first code point of the finished answer's content in the completion's text, and the content's length."""
        answer = self._running.answer()
        return max(0, answer.content_start - self._num_inserted), len(answer.content)

    @property
    def _running(self) -> AnswerParser:
        if self._parser is None:  # an answer without its prompt
            self._begin("")
        return cast("AnswerParser", self._parser)

    def _begin(self, prompt_text: str) -> None:
        calls = call_parser(self._form.parser, self._form.request.definitions)
        self._parser = AnswerParser(calls, reasoning_parser(self._form.reasoning, prompt_text, calls))

    def _chosen(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Return the deltas of the parts that the request asks for."""
        request = self._form.request
        chosen = [
            delta
            for delta in deltas
            if (delta.kind != "reasoning" or request.includes_reasoning) and (not delta.call or request.is_parallel)
        ]
        self._num_calls += sum(delta.kind == "name" for delta in chosen)
        return chosen

    def _delta(self, deltas: Iterable[Delta]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for delta in deltas:
            if delta.kind == "content":
                made["content"] = made.get("content", "") + delta.text
            elif delta.kind == "reasoning":
                for name in ("reasoning", "reasoning_content"):
                    made[name] = made.get(name, "") + delta.text
            else:
                self._add_call(made.setdefault("tool_calls", []), delta)
        return made

    def _add_call(self, calls: list[dict[str, Any]], delta: Delta) -> None:
        """Add a name, which begins a call, or a piece of arguments to a delta's calls."""
        if delta.kind == "name":
            function = {"name": delta.text, "arguments": ""}
            calls.append({"index": delta.call, "id": self.new_call_id(), "type": "function", "function": function})
        elif calls and calls[-1]["index"] == delta.call:
            calls[-1]["function"]["arguments"] += delta.text
        else:
            calls.append({"index": delta.call, "function": {"arguments": delta.text}})

    def new_call_id(self) -> str:
        """Return a new call's id; templates of Mistral's models take ids of nine letters and digits only."""
        if self._form.parser == "mistral":
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"
