"""Requests that do not arrive: a call whose request takes longer than it may ends.

gRPC waits for the one message of a request for as long as the connection lasts, and holds what has come of it; its
handlers know nothing of such a call, so that neither they nor a client's limits can end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Receiving(grpc.aio.ServerInterceptor):
    """Gives every call with one request so long to send it.

    Handlers get their request taken from a stream of requests, which is the same on the wire.

    Args:
        seconds: from the call's beginning to the end of its request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  (the type of a handler is gRPC's own affair)
        """The call's handler, which waits no longer than it may."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:

            async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
                answers = handler.unary_stream(await self._request(requests, context), context)
                if not hasattr(answers, "__aiter__"):  # a handler that writes by its context
                    await answers
                    return
                async with aclosing(answers):  # its end must not wait for the garbage collector
                    async for answer in answers:
                        yield answer

            make: Any = grpc.stream_stream_rpc_method_handler
            return make(stream, handler.request_deserializer, handler.response_serializer)

        async def single(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
            request = await self._request(requests, context)
            answer = handler.unary_unary(request, context)
            return await answer if hasattr(answer, "__await__") else answer

        return grpc.stream_unary_rpc_method_handler(single, handler.request_deserializer, handler.response_serializer)

    async def _request(self, requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
        try:
            async with asyncio.timeout(self._seconds):
                return await anext(aiter(requests))
        except TimeoutError:
            await _abort(
                context,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the request had not arrived after {self._seconds:g} s, which is the limit",
            )
        except StopAsyncIteration:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "request: there is none")


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError  # for the type checker: abort has raised
