"""Server-sent events from the SDK's events, and cancellation when a client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gradellm import GradellmError, InvalidRequestError
from gradellm_gateway.errors import body_of
from gradellm_gateway.fields import FieldNames

DONE = "data: [DONE]\n\n"
CLIENT_CLOSED_REQUEST = Response(status_code=499)  # nginx's status; the client does not receive it
# Proxies must pass each event on at once.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Result = TypeVar("Result")
Item = TypeVar("Item")


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of some work; None, with the work cancelled, where the client disconnects first."""

    async def until_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, disconnecting = asyncio.ensure_future(work), asyncio.ensure_future(until_disconnect())
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        return None
    finally:
        disconnecting.cancel()
        working.cancel()


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _error_line(error: GradellmError) -> str:
    return f"data: {json.dumps(body_of(error))}\n\n"  # as ASCII: names may have lone surrogates


@dataclass(frozen=True)
class StreamForm:
    """How server-sent events are written; by default as in streams of completions.

    Attributes:
        line: writes a chunk.
        error_line: writes an error that ends the stream.
        end: the last line.
    """

    line: Callable[[dict[str, Any]], str] = _line
    error_line: Callable[[GradellmError], str] = _error_line
    end: str = DONE


async def stream_response(
    request: Request,
    events: AsyncGenerator[Item, None],
    chunks: Callable[[Item], list[dict[str, Any]]],
    form: StreamForm | None = None,
) -> Response:
    """A response that sends the chunks of each event, or of any other item, as server-sent events.

    An error before the first event is raised, so that it gets its own HTTP status; a later one is sent as an event.
    """
    form = form or StreamForm()
    first = await unless_disconnected(request, anext(events))
    if first is None:
        await events.aclose()
        return CLIENT_CLOSED_REQUEST

    async def lines() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                for chunk in chunks(first):
                    yield form.line(chunk)
                async for event in events:
                    for chunk in chunks(event):
                        yield form.line(chunk)
            except GradellmError as error:
                yield form.error_line(error)
            if form.end:
                yield form.end

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_HEADERS)


async def with_caller_names(events: AsyncGenerator[Item, None], names: FieldNames) -> AsyncGenerator[Item, None]:
    """The same events; an InvalidRequestError names fields as the caller does."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except InvalidRequestError as error:
            raise names.error(error) from error
