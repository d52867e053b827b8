"""The prompt of an answer that is followed: how the explainer is told of it, asked of it once for all choices."""

from __future__ import annotations

import asyncio
from typing import Any

from gradellm import AsyncClient, GradellmError, TokenizedPrompt
from gradellm_gateway.upstream.followed_request import FollowedRequest
from gradellm_gateway.upstream.prompt import place_messages
from gradellm_gateway.upstream.provenance import Compared

__all__ = ["FollowedPrompt"]


class FollowedPrompt:
    """The prompt's ids, as the upstream tells them, and where the messages are in it.

    The explainer renders plain messages as soon as the request is there. If the ids are the same it follows these
    messages; else it follows the upstream's ids, with spans of messages that were found by their text.
    """

    def __init__(self, request: FollowedRequest, explainer: AsyncClient) -> None:
        self._request, self._explainer = request, explainer
        self._ids: tuple[int, ...] | None = None
        self._rendering = asyncio.ensure_future(self._render())
        self._reading: asyncio.Task[dict[str, Any]] | None = None
        self.template: Compared = "not proved"

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The prompt's ids; None until the upstream has told them."""
        return self._ids

    def set_ids(self, ids: tuple[int, ...]) -> None:
        """Take the ids; later ones, of other choices' first chunks, are the same."""
        if self._ids is None:
            self._ids = ids
            self._reading = asyncio.ensure_future(self._read(ids))
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # else asyncio logs it

    async def keywords(self) -> dict[str, Any]:
        """Return the SDK's keywords for the prompt. Raises GradellmError, also where the upstream told no ids."""
        if self._reading is None:
            raise GradellmError("the upstream told ids of the answer, but none of the prompt")
        return await asyncio.shield(self._reading)

    def close(self) -> None:
        """Cancel what is still running."""
        self._rendering.cancel()
        if self._reading is not None:
            self._reading.cancel()

    async def _render(self) -> TokenizedPrompt | None:
        if self._request.plain_messages is None:
            return None
        try:
            return await self._explainer.tokenize(messages=self._request.plain_messages)
        except GradellmError:  # the call that follows says it
            return None

    async def _read(self, ids: tuple[int, ...]) -> dict[str, Any]:
        segments = self._request.segments
        rendered = await self._rendering
        if rendered is not None:
            is_same = tuple(token.id for token in rendered.tokens) == ids
            self.template = "same" if is_same else "different"
            if is_same:
                return {"messages": self._request.plain_messages, **({"segments": segments} if segments else {})}
        placed = place_messages(self._request.messages, await self._explainer.tokenize(prompt_ids=ids))
        keywords: dict[str, Any] = {"prompt_ids": ids, "message_spans": placed.spans}
        if segments:
            keywords["segments"] = {name: placed.span(name, segment) for name, segment in segments.items()}
        return keywords
