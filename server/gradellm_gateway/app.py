"""The gateway's ASGI app. Its routes call the explanation server by the SDK; a disconnect cancels a client's call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route

from gradellm import AsyncClient
from gradellm.transport.spans import Spans
from gradellm_gateway.middleware.api_keys import ApiKeys
from gradellm_gateway.middleware.error_handlers import EXCEPTION_HANDLERS
from gradellm_gateway.middleware.request_ids import RequestIds
from gradellm_gateway.middleware.trusted_hosts import TrustedHosts
from gradellm_gateway.observability.metrics import HttpMetrics
from gradellm_gateway.observability.tracing import HttpTracing
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.routes.chat import ChatRoutes
from gradellm_gateway.routes.completions import CompletionRoutes
from gradellm_gateway.routes.fallback import fallback_routes
from gradellm_gateway.routes.models import ModelRoutes
from gradellm_gateway.routes.openapi import openapi_routes
from gradellm_gateway.routes.page import Page, shades_css
from gradellm_gateway.routes.responses import ResponseRoutes
from gradellm_gateway.routes.sdk import SdkRoutes
from gradellm_gateway.routes.service import ServiceRoutes
from gradellm_gateway.routes.tokenization import TokenizationRoutes
from gradellm_gateway.tools.forms import AnswerForms
from gradellm_gateway.upstream.routes import UpstreamRoutes

__all__ = ["gateway"]


def gateway(
    client: AsyncClient,
    *,
    upstream: UpstreamRoutes | None = None,
    served_names: Sequence[str] = (),
    api_keys: Sequence[str] = (),
    forms: AnswerForms | None = None,
    spans: Spans | None = None,
    allow_origins: Sequence[str] = (),
    allow_hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The ASGI app.

    Args:
        client: calls the explanation server; the app closes it when it shuts down.
        upstream: another engine, which generates; by default the explanation server does.
        served_names: names of the model in requests and answers; by default its own, without a path.
        api_keys: keys of callers below /v1; without any, callers' keys are the explanation server's access tokens.
        forms: how answers are read; by default by the look of the model's chat template.
        spans: makes a span for each request, and is closed with the client; by default there are none.
        allow_origins: origins whose pages may call, besides the gateway's own (CORS).
        allow_hosts: Host headers that are answered; "*" for all. Any other host may be DNS rebinding by a foreign page.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with upstream.running() if upstream is not None else nullcontext():
            yield
        await client.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)

    backend = Backend(client, upstream, served_names, passes_tokens=not api_keys)
    api = [
        *_generating(backend, forms or AnswerForms()),
        *SdkRoutes(backend).routes(),
        *ServiceRoutes(backend).routes(),
        Route("/shades.css", shades_css, methods=["GET"]),
    ]
    passing = [] if upstream is None else [Route(path, upstream.passing) for path in ("/v1", "/v1/{rest:path}")]
    paths = [route.path for route in api]
    middleware = [
        Middleware(HttpMetrics, metrics=backend.metrics, paths=paths),
        Middleware(RequestIds, is_returned=upstream is None),  # an upstream returns its own
        Middleware(TrustedHosts, names=tuple(allow_hosts)),
    ]
    if spans is not None:
        middleware.insert(0, Middleware(HttpTracing, spans=spans, paths=paths))
    if allow_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"])
        )
    if api_keys:
        middleware.append(Middleware(ApiKeys, keys=tuple(api_keys)))
    return Starlette(
        routes=[*api, *fallback_routes(api, passing), Mount("/", app=Page())],
        middleware=middleware,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )


def _generating(backend: Backend, forms: AnswerForms) -> list[Route]:
    """OpenAI's routes: the upstream's, or those of the explanation server itself."""
    if backend.upstream is not None:
        return [Route("/v1/chat/completions", backend.upstream.chat, methods=["POST"])]
    return [
        *ChatRoutes(backend, forms).routes(),
        *CompletionRoutes(backend).routes(),
        *ResponseRoutes(backend, forms).routes(),
        *ModelRoutes(backend).routes(),
        *TokenizationRoutes(backend, forms).routes(),
        *openapi_routes(),
    ]
