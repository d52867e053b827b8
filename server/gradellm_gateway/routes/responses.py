"""`/v1/responses`: the Responses API, by the explanation server itself."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradellm import GradellmError, InvalidRequestError
from gradellm_gateway.errors import body_of
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.middleware.request_ids import request_id_of
from gradellm_gateway.request_body import converted, read_object
from gradellm_gateway.responses.answer import ResponseAnswer
from gradellm_gateway.responses.request import ResponseRequest
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.streaming import (
    CLIENT_CLOSED_REQUEST,
    StreamForm,
    stream_response,
    unless_disconnected,
    with_caller_names,
)
from gradellm_gateway.tools.forms import AnswerForms

__all__ = ["ResponseRoutes"]


class ResponseRoutes:
    """Creates responses; none is stored, so that none can be retrieved."""

    def __init__(self, backend: Backend, forms: AnswerForms) -> None:
        self._backend, self._forms = backend, forms

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("/v1/responses", self.create, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        client, body = await self._backend.client_of(request), await read_object(request)
        wanted = await converted(lambda: ResponseRequest.from_json(body))
        name = await self._backend.model_name(client, body.get("model"))
        form, tools = await self._forms.of(client, wanted.tools)
        answer, keywords = ResponseAnswer(wanted, name, request_id_of(request), form), {**wanted.keywords, **tools}
        try:
            if wanted.is_streamed:
                events = with_caller_names(self._backend.generated(client, keywords), wanted.names)
                return await stream_response(request, events, answer.events, _form(answer))
            explanation = await unless_disconnected(request, self._backend.explained(client, keywords))
        except InvalidRequestError as error:
            raise wanted.names.error(error) from error
        return CLIENT_CLOSED_REQUEST if explanation is None else AsciiJSONResponse(answer.response(explanation))


def _form(answer: ResponseAnswer) -> StreamForm:
    """Events have their type as the name of the server-sent event, and no line ends the stream."""

    def line(event: dict[str, Any]) -> str:
        return f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"

    def error_line(error: GradellmError) -> str:
        return line(answer.failure(body_of(error)))

    return StreamForm(line, error_line, "")
