"""A caller's body is read in part and passed on whole; a disconnect cancels the work for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gradellm_gateway.upstream.caller import Caller
from gradellm_gateway.upstream.connection import UpstreamError


class Exchange:
    """ASGI's side of a request: messages to receive, and those that were sent."""

    def __init__(self, *bodies: bytes, leaves: bool = False, **scope: Any) -> None:
        self.sent: list[Any] = []
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": body, "more_body": index < len(bodies) - 1}
            for index, body in enumerate(bodies)
        ]
        self._leaves = leaves
        fixed = {"method": "POST", "path": "/v1/a", "raw_path": b"/v1/a%20b", "query_string": b"x=1", "headers": []}
        self.caller = Caller({**fixed, **scope}, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        if not self._leaves:
            await asyncio.sleep(20)
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def test_what_was_read_is_passed_on_too() -> None:
    async def run() -> tuple[bytes, list[bytes]]:
        caller = Exchange(b"one ", b"two ", b"", b"three").caller
        return await caller.read(5), [part async for part in caller.body()]

    read, parts = asyncio.run(run())
    assert read == b"one two "
    assert b"".join(parts) == b"one two three"


def test_the_target_is_as_the_caller_wrote_it() -> None:
    assert Exchange().caller.target == b"/v1/a%20b?x=1"
    assert Exchange(query_string=b"").caller.target == b"/v1/a%20b"


@pytest.mark.parametrize("bodies", [(b"whole",), ()])
def test_a_disconnect_cancels_the_work(bodies: tuple[bytes, ...]) -> None:
    async def run() -> bool:
        exchange = Exchange(*bodies, leaves=True)
        was_cancelled = False

        async def work() -> None:
            nonlocal was_cancelled
            try:
                await exchange.caller.read(1 << 20)
                await asyncio.sleep(20)
            except BaseException:
                was_cancelled = True
                raise

        await exchange.caller.run(work())
        assert exchange.sent == []
        return was_cancelled

    assert asyncio.run(run())


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_failure_of_the_upstream_is_the_answer_or_its_end(has_begun: bool) -> None:
    async def run() -> list[Any]:
        exchange = Exchange(b"")

        async def work() -> None:
            if has_begun:
                await exchange.caller.begin(200, [])
            raise UpstreamError("it is gone", 503, "upstream_unavailable")

        await exchange.caller.run(work())
        return exchange.sent

    sent = asyncio.run(run())
    if has_begun:
        assert [message["type"] for message in sent] == ["http.response.start"]
    else:
        assert sent[0]["status"] == 503
        assert (b"retry-after", b"1") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["error"]["code"] == "upstream_unavailable"
        assert sent[2]["more_body"] is False
