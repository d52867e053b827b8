"""`/v1/chat/completions`: chats that the explanation server itself generates."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradellm import InvalidRequestError
from gradellm_gateway.chat import ChatRequest
from gradellm_gateway.choices.chat_choices import ChatChoices, choice_keywords
from gradellm_gateway.choices.merging import gathered, merged, numbered
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.middleware.request_ids import request_id_of
from gradellm_gateway.request_body import converted, read_json
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.streaming import (
    CLIENT_CLOSED_REQUEST,
    stream_response,
    unless_disconnected,
    with_caller_names,
)
from gradellm_gateway.tools.forms import AnswerForms

__all__ = ["ChatRoutes"]


class ChatRoutes:
    """Completes chats."""

    def __init__(self, backend: Backend, forms: AnswerForms) -> None:
        self._backend, self._forms = backend, forms

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("/v1/chat/completions", self.chat, methods=["POST"])]

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        client, body = await self._backend.client_of(request), await read_json(request)
        chat_request = await converted(lambda: ChatRequest.from_json(body))
        name = await self._backend.model_name(client, body.get("model"))
        form, tools = await self._forms.of(client, chat_request.tools)
        choices = ChatChoices(chat_request, name, f"chatcmpl-{request_id_of(request)}", form)
        keywords = choice_keywords(chat_request, tools)
        try:
            if chat_request.is_streamed:
                streams = [
                    numbered(index, self._backend.generated(client, each)) for index, each in enumerate(keywords)
                ]
                events = with_caller_names(merged(streams), chat_request.names)
                return await stream_response(request, events, choices.chunks)
            answered = gathered([self._backend.explained(client, each) for each in keywords])
            explanations = await unless_disconnected(request, answered)
        except InvalidRequestError as error:
            raise chat_request.names.error(error) from error
        return CLIENT_CLOSED_REQUEST if explanations is None else AsciiJSONResponse(choices.response(explanations))
