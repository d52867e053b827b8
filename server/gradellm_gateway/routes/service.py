"""Routes about the gateway itself."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gradellm import PermissionDeniedError, UnauthenticatedError
from gradellm_gateway.routes.backend import Backend

__all__ = ["ServiceRoutes"]


class ServiceRoutes:
    """Answers probes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("/healthz", self.healthz, methods=["GET"])]

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: whether the servers behind the gateway respond."""
        upstream = self._backend.upstream
        if upstream is not None:
            return JSONResponse(await upstream.health())
        with suppress(UnauthenticatedError, PermissionDeniedError):  # the server responds, if not to this caller
            await self._backend.client.server_info(timeout=5)
        return JSONResponse({"status": "ok"})
