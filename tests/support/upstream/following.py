"""`follow` by other calls, for clients that have none yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from gradellm import AsyncClient


class FollowingByAttribute:
    def __init__(self, client: AsyncClient, keywords: dict[str, Any]) -> None:
        self._client, self._keywords = client, keywords
        self._ids: list[int] = []
        self._finished = asyncio.Event()

    async def __aenter__(self) -> FollowingByAttribute:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def append(self, ids: Any, logprobs: Any = None) -> None:
        self._ids += ids

    async def finish(self) -> None:
        self._finished.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self._finished.wait()
        keywords = dict(self._keywords)
        keywords.pop("upstream_dtype")
        keywords.pop("message_spans", None)
        async for event in self._client.attribute_events(**keywords, completion_ids=self._ids):
            yield event


def follow_by_attribute(client: AsyncClient) -> Any:
    return SimpleNamespace(
        follow=lambda **keywords: FollowingByAttribute(client, keywords),
        attribute_events=client.attribute_events,
        tokenize=client.tokenize,
        server_info=client.server_info,
        with_metadata=lambda metadata: follow_by_attribute(client.with_metadata(metadata)),
    )
