"""What the routes have in common: the explanation server as a caller may call it, and the served model's names."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.requests import Request

from gradellm import AsyncClient, Event, Explanation, PermissionDeniedError
from gradellm.explanation.explanation import Collector
from gradellm.models import ModelInfo
from gradellm_gateway.errors import ModelNotFoundError
from gradellm_gateway.fields import listed, quoted
from gradellm_gateway.middleware.request_ids import metadata_of
from gradellm_gateway.observability.metrics import GatewayMetrics
from gradellm_gateway.request_body import converted
from gradellm_gateway.upstream.routes import UpstreamRoutes

__all__ = ["ALIAS", "Backend", "public_name"]

ALIAS = "gradellm"  # a name that every gateway accepts for its model


class Backend:
    """The explanation server behind the routes.

    Args:
        client: calls it.
        upstream: another engine, which generates.
        served_names: names of the model; responses have the first. By default the model's own, without a path.
        passes_tokens: whether callers' keys are the server's access tokens, unless there is an upstream.

    Attributes:
        metrics: of what passes through the gateway.
    """

    def __init__(
        self,
        client: AsyncClient,
        upstream: UpstreamRoutes | None,
        served_names: Sequence[str] = (),
        *,
        passes_tokens: bool = True,
    ) -> None:
        self.client, self.upstream = client, upstream
        self._served_names, self._passes_tokens = tuple(served_names), passes_tokens
        self.started_at = int(time.time())
        self.metrics = GatewayMetrics()
        self._known_name = self._served_names[0] if self._served_names else ALIAS

    async def client_of(self, request: Request) -> AsyncClient:
        """The client for a caller's request: with its id and trace context, and with its bearer token.

        With an upstream, whose key the caller's is, the client has the gateway's own token.
        """
        client = await self._authorized(request)
        return client.with_metadata(metadata_of(request))

    async def _authorized(self, request: Request) -> AsyncClient:
        if self.upstream is not None:
            await self.upstream.authorize(request.headers)
            return self.client
        if not self._passes_tokens:
            return self.client
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        # OpenAI clients send "none" or "EMPTY" where no key is needed.
        is_token = kind.lower() == "bearer" and token.strip() not in ("", "none", "EMPTY")
        return self.client.with_token(token.strip()) if is_token else self.client

    async def generated(self, client: AsyncClient, keywords: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
        """Generate as the SDK does, and count it."""
        call = await converted(lambda: client.generate(**keywords))
        async with aclosing(self.metrics.observed(call, lambda: self._known_name)) as events:
            async for event in events:
                yield event

    async def explained(self, client: AsyncClient, keywords: Mapping[str, Any]) -> Explanation:
        """Generate, and return the whole."""
        collector = Collector()
        async with aclosing(self.generated(client, keywords)) as events:
            async for event in events:
                collector.add(event)
        return collector.explanation()

    def served_names(self, model: ModelInfo) -> tuple[str, ...]:
        """Return the names that requests may give for the model, besides `ALIAS`."""
        return self._served_names or (public_name(model),)

    async def model_name(self, client: AsyncClient, requested: object) -> str:
        """The served model's name; `requested` itself for a caller that may not call ServerInfo.

        Raises:
            ModelNotFoundError: if `requested` is another model.
        """
        names, accepted = self._served_names, {*self._served_names}
        if not names:
            try:
                model = (await client.server_info(timeout=10)).model
            except PermissionDeniedError:
                return str(requested or ALIAS)
            names, accepted = (public_name(model),), {model.name, Path(model.name).name}
            self._known_name = names[0]
        if requested not in (None, "", ALIAS, *names, *accepted):
            served = listed(quoted(name) for name in names)
            raise ModelNotFoundError.of(
                "model", f"{quoted(requested)} is not served here; {served} {'are' if len(names) > 1 else 'is'}"
            )
        return names[0]


def public_name(model: ModelInfo) -> str:
    """Return a model's name for callers: its hub id, or the last part of the path that it was loaded from."""
    return model.name if model.revision else Path(model.name).name or ALIAS
