"""`/v1/completions`: text completions by the explanation server itself."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradellm import AsyncClient
from gradellm_gateway.choices.merging import MAX_CONCURRENT, gathered, merged
from gradellm_gateway.completions.answer import TextAnswer
from gradellm_gateway.completions.choices import ChoiceItem, check_prompt, choice_items
from gradellm_gateway.completions.request import CompletionRequest
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.middleware.request_ids import request_id_of
from gradellm_gateway.request_body import converted, read_object
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.streaming import CLIENT_CLOSED_REQUEST, stream_response, unless_disconnected

__all__ = ["CompletionRoutes"]


class CompletionRoutes:
    """Completes texts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("/v1/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        client, body = await self._backend.client_of(request), await read_object(request)
        completion = await converted(lambda: CompletionRequest.from_json(body))
        name = await self._backend.model_name(client, body.get("model"))
        answer = TextAnswer(completion, name, f"cmpl-{request_id_of(request)}")
        items = merged(
            [choice_items(client, completion, choice, self._backend.generated) for choice in completion.choices]
        )
        if completion.is_streamed:
            if len(completion.first_choices) > 1 and not await self._are_taken(request, client, completion):
                return CLIENT_CLOSED_REQUEST
            return await stream_response(request, items, answer.chunks)

        async def collected() -> list[ChoiceItem]:
            async with aclosing(items):
                return [item async for item in items]

        parts = await unless_disconnected(request, collected())
        return CLIENT_CLOSED_REQUEST if parts is None else AsciiJSONResponse(answer.response(parts))

    async def _are_taken(self, request: Request, client: AsyncClient, completion: CompletionRequest) -> bool:
        """Check all prompts before a stream begins with status 200. False if the client has left.

        Raises InvalidRequestError for a prompt that the server refuses.
        """
        waiting = iter(completion.first_choices)

        async def check() -> None:
            for choice in waiting:
                await check_prompt(client, completion, choice)

        checks = gathered([check() for _ in range(min(MAX_CONCURRENT, len(completion.first_choices)))])
        return await unless_disconnected(request, checks) is not None
