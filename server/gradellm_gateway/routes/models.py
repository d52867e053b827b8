"""`/v1/models`: the served model."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gradellm import AsyncClient
from gradellm.serialization import to_plain
from gradellm_gateway.routes.backend import Backend

__all__ = ["ModelRoutes"]


class ModelRoutes:
    """Lists the served model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
        ]

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        card = await self._card(await self._backend.client_of(request))
        return JSONResponse({"object": "list", "data": [card]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        client = await self._backend.client_of(request)
        await self._backend.model_name(client, request.path_params["name"])
        return JSONResponse(await self._card(client))

    @staticmethod
    async def _card(client: AsyncClient) -> dict[str, Any]:
        info = await client.server_info(timeout=10)
        return {
            "id": info.model.name,
            "object": "model",
            "created": 0,
            "owned_by": "gradellm",
            "gradellm": to_plain(info),
        }
