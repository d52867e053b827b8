"""The gateway's HTTP routes. Each calls the explanation server by the SDK; a client's disconnect cancels its call."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from gradellm import (
    AsyncClient,
    Event,
    GradellmError,
    InvalidRequestError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from gradellm.explanation.html import shades
from gradellm.serialization import to_plain
from gradellm.wire.keywords import AttributeKeywords, EvaluateKeywords
from gradellm_gateway.chat import ChatRequest, Completion
from gradellm_gateway.errors import ModelNotFoundError, body_of, error_object, headers_of, status_of
from gradellm_gateway.event_objects import EventObjects, Extras
from gradellm_gateway.fields import FieldNames, object_, quoted, truncated
from gradellm_gateway.picture_request import PictureRequest
from gradellm_gateway.request_body import read_json
from gradellm_gateway.streaming import CLIENT_CLOSED_REQUEST, stream_response, unless_disconnected
from gradellm_gateway.tools.forms import AnswerForms
from gradellm_gateway.upstream.routes import UpstreamRoutes

PAGE = Path(__file__).parent / "page"
# Browsers run only the page's own scripts, and no site may frame it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: it may quote a caller's lone surrogates, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:  # noqa: ANN401 (Starlette's)
        """See Starlette's."""
        return json.dumps(content, separators=(",", ":")).encode()


def gateway(
    client: AsyncClient,
    *,
    upstream: UpstreamRoutes | None = None,
    forms: AnswerForms | None = None,
    allow_origins: Sequence[str] = (),
    allow_hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The ASGI app.

    Args:
        client: calls the explanation server; the app closes it when it shuts down.
        upstream: another engine, which generates; by default the explanation server does.
        forms: how answers are read; by default by the look of the model's chat template.
        allow_origins: origins whose pages may call, besides the gateway's own (CORS).
        allow_hosts: Host headers that are answered; "*" for all. Any other host may be DNS rebinding by a foreign page.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with upstream.running() if upstream is not None else nullcontext():
            yield
        await client.close()

    routes = _Routes(client, upstream, forms or AnswerForms())
    generating = [
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/models", routes.models, methods=["GET"]),
        Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
    ]
    passing: list[Route] = []
    if upstream is not None:
        generating = [Route("/v1/chat/completions", upstream.chat, methods=["POST"])]
        passing = [Route(path, upstream.passing) for path in ("/v1", "/v1/{rest:path}")]
    api = [
        *generating,
        Route("/v1/gradellm/info", routes.info, methods=["GET"]),
        Route("/v1/gradellm/attribute", routes.attribute, methods=["POST"]),
        Route("/v1/gradellm/evaluate", routes.evaluate, methods=["POST"]),
        Route("/v1/gradellm/pictures", routes.pictures, methods=["POST"]),
        Route("/healthz", routes.health, methods=["GET"]),
        Route("/shades.css", routes.shades, methods=["GET"]),
    ]
    middleware = [Middleware(_TrustedHosts, names=tuple(allow_hosts))]
    if allow_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"])
        )
    return Starlette(
        routes=[*api, *_fallback_routes(api, passing), Mount("/", app=_Page(directory=PAGE, html=True))],
        middleware=middleware,
        exception_handlers={
            GradellmError: _on_gradellm_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_unexpected_error,
        },
        lifespan=lifespan,
    )


def _fallback_routes(api: Sequence[Route], passing: Sequence[Route]) -> list[Route]:
    """Routes after the API's own, for unknown paths (404) and methods that a path does not allow (405).

    `passing` are those that an upstream serves, any but the gateway's own.
    """

    async def refuse(request: Request) -> Response:
        methods = {
            method
            for route in api
            if route.matches(request.scope)[0] is Match.PARTIAL
            for method in route.methods or ()
        }
        if methods:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        raise HTTPException(404)

    own = "/v1/gradellm/{rest:path}" if passing else "/v1/{rest:path}"
    paths = [own, *(route.path for route in api if not route.path.startswith("/v1/"))]
    refusing = [Route(path, _AnyMethod(refuse)) for path in (*paths, *([] if passing else ["/v1"]))]
    return [*refusing, *passing]


class _AnyMethod:
    """An endpoint for every method: Starlette restricts a plain function to GET."""

    def __init__(self, respond: Callable[[Request], Awaitable[Response]]) -> None:
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send))
        await response(scope, receive, send)


class _TrustedHosts:
    """Middleware that refuses Host headers other than the gateway's own: a protection from DNS rebinding.

    Args:
        app: the app behind it.
        names: hosts without ports; "*" for all.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names or self._is_trusted(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = "the Host header is not a name of this gateway; to allow it, start the gateway with --allow-host NAME"
        response = AsciiJSONResponse(error_object(message, "invalid_request_error", param="host"), 400)
        await response(scope, receive, send)

    def _is_trusted(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        return name.strip("[]").lower() in self._names


class _Page(StaticFiles):
    """The chat page's files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 (Starlette's)
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


async def _on_gradellm_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, GradellmError):
        raise error
    return AsciiJSONResponse(body_of(error), status_of(error), headers_of(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    path = quoted(request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        body = error_object(f"{path} allows {allowed}, not {request.method}", "invalid_request_error")
    else:
        body = error_object(f"there is no {path} here", "invalid_request_error", code="not_found")
    return AsciiJSONResponse(body, error.status_code, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The client disconnected before its request was complete."""
    return CLIENT_CLOSED_REQUEST


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    """Any other exception; Starlette logs it."""
    return AsciiJSONResponse(error_object("the gateway failed; see its log", "server_error"), 500)


class _Routes:
    def __init__(self, client: AsyncClient, upstream: UpstreamRoutes | None, forms: AnswerForms) -> None:
        self._client, self._upstream, self._forms = client, upstream, forms

    async def chat(self, request: Request) -> Response:
        client, body = await self._client_of(request), await read_json(request)
        chat_request = ChatRequest.from_json(body)
        name = await self._model_name(client, body.get("model"))
        form, tools = await self._forms.of(client, chat_request.tools)
        completion, keywords = Completion(chat_request, name, form), chat_request.keywords | tools
        try:
            if chat_request.is_streamed:
                events = _with_caller_names(client.generate(**keywords), chat_request.names)
                return await stream_response(request, events, completion.chunks)
            explanation = await unless_disconnected(request, client.explain(**keywords))
        except InvalidRequestError as error:
            raise chat_request.names.error(error) from error
        return CLIENT_CLOSED_REQUEST if explanation is None else AsciiJSONResponse(completion.response(explanation))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await self._model_card(await self._client_of(request))]})

    async def model(self, request: Request) -> Response:
        client = await self._client_of(request)
        await self._model_name(client, request.path_params["name"])
        return JSONResponse(await self._model_card(client))

    async def info(self, request: Request) -> Response:
        info = to_plain(await (await self._client_of(request)).server_info(timeout=10))
        return JSONResponse(info if self._upstream is None else {**info, "upstream": self._upstream.about()})

    async def attribute(self, request: Request) -> Response:
        client, body = await self._client_of(request), await _read_object(request)
        objects = EventObjects(Extras.of(body))
        keywords = {name: value for name, value in body.items() if name not in Extras.__annotations__}
        call = client.attribute_events
        events = _sdk_events(keywords, call, {*AttributeKeywords.__annotations__}, "{}")
        return await stream_response(request, events, lambda event: [objects.of(event)])

    async def evaluate(self, request: Request) -> Response:
        client, keywords = await self._client_of(request), await _read_object(request)
        names = {*EvaluateKeywords.__annotations__} - {"explanation"}  # which takes a Python object
        objects = EventObjects(Extras())
        events = _sdk_events(keywords, client.evaluate_events, names, "methods")
        return await stream_response(request, events, lambda event: [objects.of(event)])

    async def pictures(self, request: Request) -> Response:
        body = await read_json(request)  # of megabytes for long answers: parsed in a thread
        return AsciiJSONResponse(await run_in_threadpool(lambda: PictureRequest.from_json(body).response()))

    async def shades(self, request: Request) -> Response:
        return Response(shades(), media_type="text/css", headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        if self._upstream is not None:
            return JSONResponse(await self._upstream.health())
        with suppress(UnauthenticatedError, PermissionDeniedError):  # the server responds, if not to this caller
            await self._client.server_info(timeout=5)
        return JSONResponse({"status": "ok"})

    async def _client_of(self, request: Request) -> AsyncClient:
        """The client with the caller's bearer token; with an upstream, whose key that is, with the gateway's own."""
        if self._upstream is not None:
            await self._upstream.authorize(request.headers)
            return self._client
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # OpenAI clients send "none" or "EMPTY" where no key is needed.
        is_token = kind.lower() == "bearer" and token.strip() not in ("", "none", "EMPTY")
        return self._client.with_token(token.strip()) if is_token else self._client

    @staticmethod
    async def _model_card(client: AsyncClient) -> dict[str, Any]:
        info = await client.server_info(timeout=10)
        return {
            "id": info.model.name,
            "object": "model",
            "created": 0,
            "owned_by": "gradellm",
            "gradellm": to_plain(info),
        }

    @staticmethod
    async def _model_name(client: AsyncClient, requested: object) -> str:
        """The served model's name; `requested` itself for a caller that may not call ServerInfo.

        Raises:
            ModelNotFoundError: if `requested` is another model.
        """
        try:
            name = (await client.server_info(timeout=10)).model.name
        except PermissionDeniedError:
            return str(requested or "gradellm")
        if requested not in (None, "", "gradellm", name, Path(name).name):
            raise ModelNotFoundError.of("model", f"{quoted(requested)} is not served here; {json.dumps(name)} is")
        return name


async def _read_object(request: Request) -> Mapping[str, Any]:
    """A request's JSON object of keywords."""
    body = await read_json(request)
    if not isinstance(body, Mapping):
        raise InvalidRequestError("the request must be a JSON object of keywords")
    return body


def _sdk_events(
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
        return _with_caller_names(call(**keywords), caller_names)
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


async def _with_caller_names(events: AsyncGenerator[Event, None], names: FieldNames) -> AsyncGenerator[Event, None]:
    """The same events; an InvalidRequestError names fields as the caller does."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except InvalidRequestError as error:
            raise names.error(error) from error
