"""What the routes have in common."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from gradellm import AsyncClient
from gradellm_gateway.routes.backend import Backend


@pytest.mark.parametrize(
    ("authorization", "token"),
    [("", None), ("Bearer none", None), ("Bearer EMPTY", None), ("Basic abc", None), ("bearer  abc ", "Bearer abc")],
)
def test_a_callers_key_is_its_token(authorization: str, token: str | None) -> None:
    async def metadata() -> dict[str, str]:
        headers = [(b"authorization", authorization.encode())] if authorization else []
        request = Request({"type": "http", "headers": headers})
        client = await Backend(AsyncClient("localhost:1"), None).client_of(request)
        return dict(client._session.credentials.metadata)

    assert asyncio.run(metadata()).get("authorization") == token
