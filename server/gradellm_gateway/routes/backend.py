"""What the routes have in common: the explanation server as a caller may call it, and the served model's name."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.requests import Request

from gradellm import AsyncClient, PermissionDeniedError
from gradellm_gateway.errors import ModelNotFoundError
from gradellm_gateway.fields import quoted
from gradellm_gateway.upstream.routes import UpstreamRoutes

__all__ = ["Backend"]


class Backend:
    """The explanation server behind the routes.

    Args:
        client: calls it.
        upstream: another engine, which generates.
    """

    def __init__(self, client: AsyncClient, upstream: UpstreamRoutes | None) -> None:
        self.client, self.upstream = client, upstream

    async def client_of(self, request: Request) -> AsyncClient:
        """The client with the caller's bearer token; with an upstream, whose key that is, with the gateway's own."""
        if self.upstream is not None:
            await self.upstream.authorize(request.headers)
            return self.client
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # OpenAI clients send "none" or "EMPTY" where no key is needed.
        is_token = kind.lower() == "bearer" and token.strip() not in ("", "none", "EMPTY")
        return self.client.with_token(token.strip()) if is_token else self.client

    async def model_name(self, client: AsyncClient, requested: object) -> str:
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
