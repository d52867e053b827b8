"""Reads the JSON body of a request, within its size limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request

from gradellm import InvalidRequestError
from gradellm_gateway.errors import RequestTooLargeError
from gradellm_gateway.fields import quoted

MAX_BODY_BYTES = 8 << 20

DISCARD_SECONDS = 2.0


async def read_json(request: Request) -> Any:  # noqa: ANN401 (whatever a client sent)
    """The request's JSON value.

    Raises:
        InvalidRequestError: for another content type, or a body that is not JSON.
        RequestTooLargeError: for a body of more than `MAX_BODY_BYTES`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which pages of other origins cannot send without a CORS preflight
        shown = quoted(kind) if kind else "none"
        raise InvalidRequestError.of("content-type", f"must be application/json, not {shown}")
    body = await _read_body(request)
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InvalidRequestError("the request is nested too deeply") from error
    except ValueError as error:  # also for bytes that are not UTF-8, and numbers with thousands of digits
        raise InvalidRequestError(f"the request is not JSON: {error}") from error


async def read_object(request: Request) -> Mapping[str, Any]:
    """The request's JSON object. Raises as `read_json`, and InvalidRequestError for another JSON value."""
    body = await read_json(request)
    if not isinstance(body, Mapping):
        raise InvalidRequestError("the request must be a JSON object")
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


async def _read_body(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    chunks = request.stream()
    body = bytearray()
    is_too_large = length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES
    while not is_too_large and (chunk := await anext(chunks, None)) is not None:
        body += chunk
        is_too_large = len(body) > MAX_BODY_BYTES
    if is_too_large:
        if "expect" not in request.headers:  # else the client waits for 100 Continue before it sends the body
            await _discard(chunks)
        raise RequestTooLargeError(f"the request is larger than {MAX_BODY_BYTES:,} bytes, which is the limit")
    return bytes(body)


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    """Read the rest of a body for a while: a client that is disconnected while it sends does not see the response."""
    count = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while count < 2 * MAX_BODY_BYTES and (chunk := await anext(chunks, None)) is not None:
                count += len(chunk)
