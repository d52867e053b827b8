"""A deadline for receiving requests: a call whose request does not arrive in time ends.

gRPC waits for the single message of a request as long as the connection lasts, and buffers what has arrived; the
handler has not been called yet, so that neither it nor a client's quota can end such a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ReceiveDeadline(grpc.aio.ServerInterceptor):
    """Gives every call with one request a limited time to send it.

    Handlers are wrapped as handlers of a stream of requests, which is the same on the wire.

    Args:
        seconds: from the start of the call to the end of its request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  (gRPC does not type its handlers)
        """The call's handler, with the deadline."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:

            async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
                responses = handler.unary_stream(await self._request(requests, context), context)
                if not hasattr(responses, "__aiter__"):  # a handler that writes through its context
                    await responses
                    return
                async with aclosing(responses):  # ends the handler now, and not when it is garbage-collected
                    async for response in responses:
                        yield response

            make: Any = grpc.stream_stream_rpc_method_handler
            return make(stream, handler.request_deserializer, handler.response_serializer)

        async def unary(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
            request = await self._request(requests, context)
            response = handler.unary_unary(request, context)
            return await response if hasattr(response, "__await__") else response

        return grpc.stream_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)

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
