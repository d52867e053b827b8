"""Authentication of every call, before its request is received.

1. The token identifies a client; without a valid one the call ends with UNAUTHENTICATED, always in the same words.
2. The client must be allowed to call the method, else PERMISSION_DENIED.
3. A stream counts towards the client's concurrent streams, else RESOURCE_EXHAUSTED.

Health checks need no token, because probes have none; reflection needs one. The tokens of a request are known only
after it has been read: `gradellm_server.auth.quota`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc

from gradellm_engine import InvalidRequestError
from gradellm_server.auth.file_watcher import FileWatcher
from gradellm_server.auth.quota import Quota, Quotas, TooManyStreamsError, current_quota
from gradellm_server.auth.tokens import METHODS, Client, MethodNotAllowedError, UnknownClientError, read_clients
from gradellm_server.observability.call import CallObservers, current_client
from gradellm_server.rpc.status import reason_of, status_of

EXEMPT = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
KEY = "authorization"
SCHEME = "bearer "

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Admits callers that have a token of a file.

    Args:
        path: the file of tokens.
        observers: notified of rejected calls.

    Raises:
        SecurityFileError: if the file cannot be used.
    """

    def __init__(self, path: Path, observers: CallObservers | None = None) -> None:
        self._clients = FileWatcher([path], lambda: read_clients(path))
        if not self._clients.value.clients:
            logger.warning("%s names no client; every call will be rejected", path)
        self._quotas = Quotas()
        self._observers = observers or CallObservers()

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  (gRPC does not type its handlers)
        """The call's handler, or one that rejects the call."""
        if handler_call_details.method in EXEMPT:
            return await continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        method_label = method if method in METHODS else "another method"  # no text of a caller in logs and metrics
        client = self._client(handler_call_details)
        if client is None:
            return self._rejecting(UnknownClientError(), method_label)
        current_client.set(client.name)
        if client.methods is not None and method not in client.methods:
            return self._rejecting(MethodNotAllowedError(client, method_label), method_label)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method
        quota = self._quotas.of(client)
        current_quota.set(quota)
        return self._counting(handler, quota, method_label) if handler.response_streaming else handler

    def _client(self, details: grpc.HandlerCallDetails) -> Client | None:
        """The client whose token the call has."""
        values = [value for key, value in details.invocation_metadata or () if key.lower() == KEY]
        token = values[0] if len(values) == 1 else None
        if not isinstance(token, str) or not token.lower().startswith(SCHEME):
            return None
        return self._clients.value.find(token[len(SCHEME) :].strip())

    def _rejecting(self, error: Exception, method: str) -> Any:  # noqa: ANN401
        """A handler that ends the call with an error, without waiting for the request."""

        async def reject(requests: object, context: Context) -> AsyncIterator[Any]:
            await self._reject(error, method, context)
            yield  # never reached; it makes this an async generator, as a handler of streams must be

        return grpc.stream_stream_rpc_method_handler(reject)

    def _counting(self, handler: Any, quota: Quota, method: str) -> Any:  # noqa: ANN401
        """A streaming handler that counts towards the client's concurrent streams while it runs.

        It takes its single request from an iterator, so that a call beyond the limit is rejected before its request is
        received. gRPC would not call a handler of one request if no request came, and the end of the count would be
        missed.
        """

        async def counting(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                quota.open_stream()
            except TooManyStreamsError as error:
                await self._reject(error, method, context)
            try:
                if handler.request_streaming:
                    responses = handler.stream_stream(requests, context)
                else:
                    responses = handler.unary_stream(await _single_request(requests, context), context)
                async with aclosing(responses):  # ends the handler now, and not when it is garbage-collected
                    async for response in responses:
                        yield response
            finally:
                quota.close_stream()

        return grpc.stream_stream_rpc_method_handler(
            counting,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _reject(self, error: Exception, method: str, context: Context) -> None:
        status = status_of(error)
        self._observers.on_rejected(
            method, tuple(context.invocation_metadata() or ()), status.code.name, reason_of(status)
        )
        logger.debug("Rejected %s from %s: %s", method, context.peer(), status.code.name)
        await context.abort_with_status(status)


async def _single_request(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
    async for request in requests:
        return request
    await context.abort_with_status(status_of(InvalidRequestError("request", "there is none")))
    return None  # never reached: abort_with_status has raised
