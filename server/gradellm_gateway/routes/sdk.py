"""`/v1/gradellm`: the SDK's calls over HTTP, and pictures of explanations."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gradellm import Event, InvalidRequestError
from gradellm.serialization import to_plain
from gradellm.wire.keywords import AttributeKeywords, EvaluateKeywords
from gradellm_gateway.event_objects import EventObjects, Extras
from gradellm_gateway.fields import FieldNames, object_, truncated
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.picture_request import PictureRequest
from gradellm_gateway.request_body import converted, read_json, read_object
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.streaming import stream_response, with_caller_names

__all__ = ["SdkRoutes"]


class SdkRoutes:
    """Attribution, evaluation, server information and pictures."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/v1/gradellm/info", self.info, methods=["GET"]),
            Route("/v1/gradellm/attribute", self.attribute, methods=["POST"]),
            Route("/v1/gradellm/evaluate", self.evaluate, methods=["POST"]),
            Route("/v1/gradellm/pictures", self.pictures, methods=["POST"]),
        ]

    async def info(self, request: Request) -> Response:
        """`GET /v1/gradellm/info`: the server's information, and what is known of an upstream."""
        client, upstream = await self._backend.client_of(request), self._backend.upstream
        info = await client.server_info(timeout=10)
        if upstream is not None:
            return JSONResponse({**to_plain(info), "upstream": upstream.about()})
        name = self._backend.served_names(info.model)[0]
        return JSONResponse(to_plain(replace(info, model=replace(info.model, name=name))))

    async def attribute(self, request: Request) -> Response:
        """`POST /v1/gradellm/attribute`."""
        client, body = await self._backend.client_of(request), await read_object(request)
        objects = EventObjects(Extras.of(body))
        keywords = {name: value for name, value in body.items() if name not in Extras.__annotations__}
        call = client.attribute_events
        events = await _sdk_events(keywords, call, {*AttributeKeywords.__annotations__}, "{}")
        return await stream_response(request, events, lambda event: [objects.of(event)])

    async def evaluate(self, request: Request) -> Response:
        """`POST /v1/gradellm/evaluate`."""
        client, keywords = await self._backend.client_of(request), await read_object(request)
        names = {*EvaluateKeywords.__annotations__} - {"explanation"}  # which takes a Python object
        objects = EventObjects(Extras())
        events = await _sdk_events(keywords, client.evaluate_events, names, "methods")
        return await stream_response(request, events, lambda event: [objects.of(event)])

    async def pictures(self, request: Request) -> Response:
        """`POST /v1/gradellm/pictures`."""
        body = await read_json(request)  # of megabytes for long answers: parsed in a thread
        return AsciiJSONResponse(await run_in_threadpool(lambda: PictureRequest.from_json(body).response()))


async def _sdk_events(
    body: Mapping[str, Any], call: Callable[..., AsyncGenerator[Event, None]], names: set[str], attribution: str
) -> AsyncGenerator[Event, None]:
    """The events of an SDK call whose keywords are the request's JSON object.

    `names` are those of the call's keywords besides `prompt`; `attribution` see `FieldNames`.
    """
    names = {"prompt", *names}
    if unknown := body.keys() - names:
        raise InvalidRequestError.of(truncated(min(unknown)), f"is not known; there are {', '.join(sorted(names))}")
    keywords = dict(body)
    if keywords.get("scores") is not None:
        keywords["scores"] = _scores_by_step(keywords["scores"])
    caller_names = FieldNames(body, attribution=attribution)
    try:
        return with_caller_names(await converted(lambda: call(**keywords)), caller_names)
    except InvalidRequestError as error:
        raise caller_names.error(error) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"the request has no meaning: {error}") from error


def _scores_by_step(scores: object) -> dict[str, dict[int, object]]:
    """A caller's own scores, {name: {step: row}}, with steps as integers: JSON has only text keys."""
    object_("scores", scores)
    by_name: dict[str, dict[int, object]] = {}
    for name, rows in scores.items() if isinstance(scores, Mapping) else ():
        path = f"scores.{truncated(name)}"
        object_(path, rows)
        by_name[name] = {}
        for step, row in rows.items():
            if not re.fullmatch(r"[0-9]{1,9}", step):
                raise InvalidRequestError.of(f"{path}.{truncated(step)}", "must be the number of a step")
            by_name[name][int(step)] = row
    return by_name
