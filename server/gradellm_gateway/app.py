"""The HTTP routes. Each asks the explanation server by the SDK; a client that leaves cancels what it asked for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
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
from gradellm_gateway.chat import ChatRequest, Completion, named
from gradellm_gateway.errors import (
    ModelNotFoundError,
    RequestTooLargeError,
    body_of,
    error_object,
    headers_of,
    status_of,
)
from gradellm_gateway.fields import Names, name_of, object_, shown

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 8 << 20
DISCARD_SECONDS = 2.0
DONE = "data: [DONE]\n\n"
# Browsers are told to run nothing but the page's own files.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each event on at once

Result = TypeVar("Result")


class Answer(JSONResponse):
    """JSON that says callers' own words back: those may be no text, half characters for example."""

    def render(self, content: Any) -> bytes:  # noqa: ANN401 (Starlette's)
        """See Starlette's."""
        return json.dumps(content, separators=(",", ":")).encode()


def gateway(
    client: AsyncClient, *, allow_origins: Sequence[str] = (), allow_hosts: Sequence[str] = ("*",)
) -> Starlette:
    """The ASGI app over a client, which it closes at its end.

    Args:
        client: asks the explanation server.
        allow_origins: whose pages may call, beside its own.
        allow_hosts: by which names it may be called: others are a foreign page's trick to pass for its own.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        yield
        await client.close()

    routes = _Routes(client)
    api = [
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/models", routes.models, methods=["GET"]),
        Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
        Route("/v1/gradellm/info", routes.info, methods=["GET"]),
        Route("/v1/gradellm/attribute", routes.attribute, methods=["POST"]),
        Route("/v1/gradellm/evaluate", routes.evaluate, methods=["POST"]),
        Route("/healthz", routes.health, methods=["GET"]),
        Route("/shades.css", routes.shades, methods=["GET"]),
    ]
    middleware = [Middleware(_KnownHosts, names=tuple(allow_hosts))]
    if allow_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"])
        )
    return Starlette(
        routes=[*api, *_refused_routes(api), Mount("/", app=_Page(directory=PAGE, html=True))],
        middleware=middleware,
        exception_handlers={
            GradellmError: _failed,
            HTTPException: _refused,
            ClientDisconnect: _left,
            Exception: _broken,
        },
        lifespan=lifespan,
    )


def _refused_routes(api: Sequence[Route]) -> list[Route]:
    """For what is no route, or is called by another method than it has. They stand behind the API's own."""

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

    paths = ["/v1", "/v1/{rest:path}", *(route.path for route in api if not route.path.startswith("/v1/"))]
    return [Route(path, _Any(refuse)) for path in paths]


class _Any:
    """An endpoint for every method: Starlette takes a function for GET alone."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)


class _KnownHosts:
    """Answers only by the names that the gateway has: a foreign page may have its own name lead here.

    Args:
        app: what answers.
        names: hosts without ports; * for all.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self._names or self._is_known(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = "the Host header is no name of this gateway; start it with --allow-host NAME for others"
        response = Answer(error_object(message, "invalid_request_error", param="host"), 400)
        await response(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        return name.strip("[]").lower() in self._names


class _Page(StaticFiles):
    """The chat page's files."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 (Starlette's)
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, GradellmError):
        raise error
    return Answer(body_of(error), status_of(error), headers_of(error))


async def _refused(request: Request, error: Exception) -> Response:
    """A request that has no route."""
    if not isinstance(error, HTTPException):
        raise error
    path = shown(request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        said = error_object(f"{path} takes {allowed}, and no {request.method}", "invalid_request_error")
    else:
        said = error_object(f"there is no {path} here", "invalid_request_error", code="not_found")
    return Answer(said, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    """A client that went away before its request had come."""
    return LEFT


async def _broken(request: Request, error: Exception) -> Response:
    """What nobody expected; Starlette logs it."""
    return Answer(error_object("the gateway failed; see its log", "server_error"), 500)


class _Routes:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def chat(self, request: Request) -> Response:
        client, body = self._client_of(request), await _json(request)
        asked = ChatRequest.of(body)
        name = await self._model_name(client, body.get("model"))
        completion = Completion(asked, name)
        try:
            if asked.is_streamed:
                events = _renamed(client.generate(**asked.keywords), asked.names)
                return await _streamed(request, events, completion.chunks)
            explanation = await _unless_left(request, client.explain(**asked.keywords))
        except InvalidRequestError as error:
            raise asked.names.error(error) from error
        return LEFT if explanation is None else Answer(completion.whole(explanation))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await self._model_card(self._client_of(request))]})

    async def model(self, request: Request) -> Response:
        client = self._client_of(request)
        await self._model_name(client, request.path_params["name"])
        return JSONResponse(await self._model_card(client))

    async def info(self, request: Request) -> Response:
        return JSONResponse(to_plain(await self._client_of(request).server_info(timeout=10)))

    async def attribute(self, request: Request) -> Response:
        events = await _asked(request, self._client_of(request).attribute_events, AttributeKeywords, "{}")
        return await _streamed(request, events, lambda event: [named(event)])

    async def evaluate(self, request: Request) -> Response:
        events = await _asked(request, self._client_of(request).evaluate_events, EvaluateKeywords, "methods")
        return await _streamed(request, events, lambda event: [named(event)])

    async def shades(self, request: Request) -> Response:
        return Response(shades(), media_type="text/css", headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        with suppress(UnauthenticatedError, PermissionDeniedError):  # it answers, though not to who has no token
            await self._client.server_info(timeout=5)
        return JSONResponse({"status": "ok"})

    def _client_of(self, request: Request) -> AsyncClient:
        """The client with the caller's own token."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        is_token = kind.lower() == "bearer" and token.strip() not in ("", "none", "EMPTY")  # what is sent for no key
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
    async def _model_name(client: AsyncClient, asked: object) -> str:
        """The served model's name, where that is what was asked for; as asked, for who may not ask what is served.

        Raises ModelNotFoundError where it is another's.
        """
        try:
            name = (await client.server_info(timeout=10)).model.name
        except PermissionDeniedError:
            return str(asked or "gradellm")
        if asked not in (None, "", "gradellm", name, Path(name).name):
            raise ModelNotFoundError.of("model", f"{shown(asked)} is not served here; {json.dumps(name)} is")
        return name


async def _json(request: Request) -> Any:  # noqa: ANN401 (what a client sent)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which pages of other origins may not send without being allowed to
        raise InvalidRequestError.of("content-type", f"must be application/json, not {shown(kind) if kind else 'none'}")
    body = await _body(request)
    try:
        return json.loads(body, parse_constant=_no_constant)
    except RecursionError as error:
        raise InvalidRequestError("the request is nested too deeply") from error
    except ValueError as error:  # also of bytes that are no text, and of numbers with thousands of digits
        raise InvalidRequestError(f"the request is not JSON: {error}") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


async def _body(request: Request) -> bytes:
    """The bytes of a request, no more than it may have."""
    length = request.headers.get("content-length", "")
    parts = request.stream()
    body = bytearray()
    is_too_large = length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES
    while not is_too_large and (part := await anext(parts, None)) is not None:
        body += part
        is_too_large = len(body) > MAX_BODY_BYTES
    if is_too_large:
        if "expect" not in request.headers:  # else the client waits for the word to send it
            await _discard(parts)
        raise RequestTooLargeError(f"the request is larger than {MAX_BODY_BYTES:,} bytes, which is the limit")
    return bytes(body)


async def _discard(parts: AsyncIterator[bytes]) -> None:
    """Read what a client is still sending, for a while: hung up on meanwhile, it would not see the answer."""
    count = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while count < 2 * MAX_BODY_BYTES and (part := await anext(parts, None)) is not None:
                count += len(part)


async def _asked(
    request: Request, call: Callable[..., AsyncGenerator[Event, None]], known: type, attribution: str
) -> AsyncGenerator[Event, None]:
    """What a call of the SDK gives for the keywords that a request has as JSON."""
    body = await _json(request)
    if not isinstance(body, Mapping):
        raise InvalidRequestError("the request must be a JSON object of keywords")
    names = {"prompt", *known.__annotations__} - {"explanation"}  # which is an object of Python's
    if unknown := body.keys() - names:
        raise InvalidRequestError.of(name_of(min(unknown)), f"is not known; there are {', '.join(sorted(names))}")
    keywords = dict(body)
    if keywords.get("scores") is not None:
        keywords["scores"] = _scores(keywords["scores"])
    renamed = Names(body, attribution=attribution)
    try:
        return _renamed(call(**keywords), renamed)
    except InvalidRequestError as error:
        raise renamed.error(error) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"the request has no meaning: {error}") from error


def _scores(given: object) -> dict[str, dict[int, object]]:
    """Scores of the caller's own, by steps, which JSON makes texts."""
    object_("scores", given)
    found: dict[str, dict[int, object]] = {}
    for name, rows in given.items() if isinstance(given, Mapping) else ():
        path = f"scores.{name_of(name)}"
        object_(path, rows)
        found[name] = {}
        for step, row in rows.items():
            if not re.fullmatch(r"[0-9]{1,9}", step):
                raise InvalidRequestError.of(f"{path}.{name_of(step)}", "must be the number of a step")
            found[name][int(step)] = row
    return found


async def _renamed(events: AsyncGenerator[Event, None], names: Names) -> AsyncGenerator[Event, None]:
    """Events; a refusal in the caller's names."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except InvalidRequestError as error:
            raise names.error(error) from error


LEFT = Response(status_code=499)  # nobody reads it


async def _unless_left(request: Request, work: Awaitable[Result]) -> Result | None:
    """What comes of it; where the client leaves before, it is cancelled, and there is nothing."""

    async def until_left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(until_left())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return await doing
        doing.cancel()
        with suppress(asyncio.CancelledError):
            await doing
        return None
    finally:
        leaving.cancel()
        doing.cancel()


async def _streamed(
    request: Request, events: AsyncGenerator[Event, None], chunks: Callable[[Event], list[dict[str, Any]]]
) -> Response:
    """Server-sent events. What fails before the first one still has a status of its own."""
    first = await _unless_left(request, anext(events))
    if first is None:
        await events.aclose()
        return LEFT

    async def lines() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                for chunk in chunks(first):
                    yield _line(chunk)
                async for event in events:
                    for chunk in chunks(event):
                        yield _line(chunk)
            except GradellmError as error:
                yield f"data: {json.dumps(body_of(error))}\n\n"  # ASCII: names may be half characters
            yield DONE

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_STREAM_HEADERS)


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
