"""Routes about the gateway itself, which need no key."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gradellm import PermissionDeniedError, UnauthenticatedError, __version__
from gradellm_gateway.routes.backend import Backend

__all__ = ["ServiceRoutes"]


class ServiceRoutes:
    """Answers probes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """`GET /health`, as vLLM's: an empty answer if the servers behind the gateway respond."""
        await self.healthz(request)
        return Response()

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: whether the servers behind the gateway respond."""
        upstream = self._backend.upstream
        if upstream is not None:
            return JSONResponse(await upstream.health())
        with suppress(UnauthenticatedError, PermissionDeniedError):  # the server responds, if not to this caller
            await self._backend.client.server_info(timeout=5)
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:
        """`GET /version`: the gateway's."""
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: the gateway's, in Prometheus's text format."""
        return Response(self._backend.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
