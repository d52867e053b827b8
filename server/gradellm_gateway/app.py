"""The HTTP routes. Each asks the explanation server by the SDK; a client that leaves cancels what it asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gradellm import (
    AsyncClient,
    Event,
    GradellmError,
    InvalidRequestError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from gradellm.page import shades
from gradellm.plain import to_plain
from gradellm_gateway.chat import ChatRequest, Completion, named
from gradellm_gateway.errors import ModelNotFoundError, body_of, headers_of, status_of

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 8 << 20
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
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allow_hosts))]
    if allow_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"])
        )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/v1/gradellm/info", routes.info, methods=["GET"]),
            Route("/v1/gradellm/attribute", routes.attribute, methods=["POST"]),
            Route("/v1/gradellm/evaluate", routes.evaluate, methods=["POST"]),
            Route("/healthz", routes.health, methods=["GET"]),
            Route("/shades.css", routes.shades, methods=["GET"]),
            Mount("/", app=_Page(directory=PAGE, html=True)),
        ],
        middleware=middleware,
        exception_handlers={GradellmError: _failed},
        lifespan=lifespan,
    )


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


class _Routes:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def chat(self, request: Request) -> Response:
        client, body = self._client_of(request), await _json(request)
        asked = ChatRequest.of(body)
        name = await self._model_name(client, body.get("model"))
        completion = Completion(asked, name)
        if asked.is_streamed:
            return await _streamed(request, client.generate(**asked.keywords), completion.chunks)
        explanation = await _unless_left(request, client.explain(**asked.keywords))
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
        events = await _asked(request, self._client_of(request).attribute_events)
        return await _streamed(request, events, lambda event: [named(event)])

    async def evaluate(self, request: Request) -> Response:
        events = await _asked(request, self._client_of(request).evaluate_events)
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
            raise ModelNotFoundError.of("model", f"{str(asked)[:100]!r} is not served here; {name!r} is")
        return name


async def _json(request: Request) -> Any:  # noqa: ANN401 (what a client sent)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which pages of other origins may not send without being allowed to
        raise InvalidRequestError.of("content-type", f"must be application/json, not {kind or 'nothing'}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise InvalidRequestError(f"the request is larger than {MAX_BODY_BYTES:,} bytes, which is the limit")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the request is not JSON: {error}") from error


async def _asked(request: Request, call: Callable[..., AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """What a call of the SDK gives for the keywords that a request has as JSON."""
    body = await _json(request)
    if not isinstance(body, Mapping) or "explanation" in body:  # that is an object of Python's
        raise InvalidRequestError("the request must be a JSON object of keywords, explanation not among them")
    keywords = dict(body)
    try:
        if keywords.get("scores") is not None:  # whose keys JSON makes texts
            keywords["scores"] = {
                name: {int(step): row for step, row in rows.items()} for name, rows in keywords["scores"].items()
            }
        return call(**keywords)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"the request has no meaning: {error}") from error


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
                yield f"data: {json.dumps(body_of(error))}\n\n"
            yield DONE

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_STREAM_HEADERS)


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
