"""Chooses how an answer is read: by the gateway's flags, the model and the request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from gradellm import AsyncClient, GradellmError, InvalidRequestError, PermissionDeniedError
from gradellm.models import ModelInfo
from gradellm.parsers.registry import MARKER_TEXTS
from gradellm_gateway.tools.answer import AnswerForm
from gradellm_gateway.tools.constraint import call_grammar
from gradellm_gateway.tools.request import ToolRequest

__all__ = ["AnswerForms"]

log = logging.getLogger("gradellm_gateway")


class AnswerForms:
    """The forms of answers of one gateway.

    Args:
        parser: the form of calls, by the name of its parser; by default the model's, by the look of its template.
        reasoning: the form of reasoning.
    """

    def __init__(self, parser: str | None = None, reasoning: str = "qwen3") -> None:
        self._parser, self._reasoning = parser, reasoning
        self._marker_ids: dict[str, Mapping[str, int]] = {}  # by the tokenizer's hash
        self._logged: set[str] = set()

    async def of(self, client: AsyncClient, request: ToolRequest) -> tuple[AnswerForm, dict[str, Any]]:
        """Return the form of the answer to a request, and the keywords of `generate` for its tools.

        Raises InvalidRequestError where a call is required that the model or the gateway cannot have.
        """
        plain = AnswerForm(request, None, self._reasoning)
        if not request.definitions:
            return plain, {}
        model = await self._model(client)
        if model is not None and not model.has_tools:
            return plain, self._without_tools(request, "the model's chat template has no tools")
        keywords: dict[str, Any] = {"tools": list(request.definitions)}
        parser = self._parser or (model.tool_call_parser if model is not None else "")
        if not parser:
            why = "the form of the model's calls is not known, and the gateway has no --tool-call-parser"
            self._without_tools(request, why)
            return plain, keywords
        if request.choice == "none":
            return plain, keywords
        form = AnswerForm(request, parser, self._reasoning, await self._markers(client, model))
        if request.choice in ("required", "named"):
            is_parallel = request.is_parallel and request.choice == "required"
            grammar = call_grammar(parser, request.callable, is_parallel=is_parallel, marker_ids=form.marker_ids)
            keywords["grammar"] = grammar
        return form, keywords

    def _without_tools(self, request: ToolRequest, why: str) -> dict[str, Any]:
        """Answer with text, and log it once. Raises InvalidRequestError if a call is required."""
        if request.choice not in ("none", "auto"):
            raise InvalidRequestError.of("tool_choice", f"{why}: choose auto or none, or leave tools out")
        if why not in self._logged:
            self._logged.add(why)
            log.warning("Chats with tools are answered with text: %s", why)
        return {}

    @staticmethod
    async def _model(client: AsyncClient) -> ModelInfo | None:
        """Return the served model; None for a caller that may not ask."""
        try:
            return (await client.server_info(timeout=10)).model
        except PermissionDeniedError:
            return None

    async def _markers(self, client: AsyncClient, model: ModelInfo | None) -> Mapping[str, int]:
        """Return the ids of markers that are tokens of their own: special ones have no text in a completion."""
        key = "" if model is None else model.tokenizer_sha256
        if key not in self._marker_ids:
            found: dict[str, int] = {}
            for text in sorted(MARKER_TEXTS):
                try:
                    tokens = (await client.tokenize(text, timeout=10)).tokens
                except GradellmError:  # such as a caller that may not ask: markers are then plain text
                    return found
                found |= {token.text: token.id for token in tokens if token.text == text}
            self._marker_ids[key] = found
        return self._marker_ids[key]
