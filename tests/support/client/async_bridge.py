"""AsyncClient behind the interface of Client, so that one test runs with both."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

from gradellm import AsyncClient, Event


class AsyncBridge:
    """AsyncClient called from ordinary code: every call runs to its end on a new event loop."""

    def __init__(self, target: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(target, retry=None)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            result = getattr(self._client, name)(*args, **keywords)
            return self._run(result) if isinstance(result, Coroutine) else self._iterate(result)

        return call

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    def _iterate(self, events: Any) -> Iterator[Event]:
        try:
            while True:
                try:
                    event = self._run(anext(events))
                except StopAsyncIteration:
                    return
                yield event
        finally:
            self._run(events.aclose())

    def end(self) -> None:
        self._run(self._client.close())
        self._loop.close()
