"""`/v1/chat/completions`: chats that the explanation server itself generates."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradellm import InvalidRequestError
from gradellm_gateway.chat import ChatRequest, Completion
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.middleware.request_ids import request_id_of
from gradellm_gateway.request_body import read_json
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.streaming import (
    CLIENT_CLOSED_REQUEST,
    stream_response,
    unless_disconnected,
    with_caller_names,
)

__all__ = ["ChatRoutes"]


class ChatRoutes:
    """Completes chats."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("/v1/chat/completions", self.chat, methods=["POST"])]

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        client, body = await self._backend.client_of(request), await read_json(request)
        chat_request = ChatRequest.from_json(body)
        name = await self._backend.model_name(client, body.get("model"))
        completion = Completion(chat_request, name, f"chatcmpl-{request_id_of(request)}")
        try:
            if chat_request.is_streamed:
                events = with_caller_names(self._backend.generated(client, chat_request.keywords), chat_request.names)
                return await stream_response(request, events, completion.chunks)
            explanation = await unless_disconnected(request, self._backend.explained(client, chat_request.keywords))
        except InvalidRequestError as error:
            raise chat_request.names.error(error) from error
        return CLIENT_CLOSED_REQUEST if explanation is None else AsciiJSONResponse(completion.response(explanation))
