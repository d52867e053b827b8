"""`/v1/models`: the served model, a card for each of its names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gradellm import AsyncClient
from gradellm.serialization import to_plain
from gradellm_gateway.routes.backend import ALIAS, Backend

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
        cards = await self._cards(await self._backend.client_of(request))
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        client, name = await self._backend.client_of(request), request.path_params["name"]
        await self._backend.model_name(client, name)
        cards = {card["id"]: card for card in await self._cards(client)}
        return JSONResponse(cards.get(name) or next(iter(cards.values())))

    async def _cards(self, client: AsyncClient) -> list[dict[str, Any]]:
        """Return a card for each name, with vLLM's fields and what the server tells. None has a path."""
        info = await client.server_info(timeout=10)
        names = self._backend.served_names(info.model)
        told = to_plain(replace(info, model=replace(info.model, name=names[0])))
        return [
            {
                "id": name,
                "object": "model",
                "created": self._backend.started_at,
                "owned_by": ALIAS,
                "root": names[0],
                "parent": None,
                "max_model_len": info.model.context_tokens,
                "gradellm": told,
            }
            for name in names
        ]
