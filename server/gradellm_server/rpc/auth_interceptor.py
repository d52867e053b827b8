"""The gate before all services: no call passes without a token that allows it.

1. Whose token is it? Nobody's, or an expired one: UNAUTHENTICATED, in the same words.
2. May the client call this? Else PERMISSION_DENIED.
3. A stream: has the client one left? Else RESOURCE_EXHAUSTED.

A refused call's request is not even received. Health checks pass, because probes have no token; reflection does not.
How many tokens a request takes is known only once it has been read: `gradellm_server.auth.quota`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc

from gradellm_engine import InvalidRequestError
from gradellm_server.auth.access import MethodNotAllowedError, UnknownClientError
from gradellm_server.auth.file_watcher import Reloading
from gradellm_server.auth.quota import Quota, Quotas, TooManyStreamsError, current_quota
from gradellm_server.auth.tokens import METHODS, Client, read_clients
from gradellm_server.observability.call import Watchers, current_client
from gradellm_server.rpc.status import reason_of, status_of

EXEMPT = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
KEY = "authorization"
SCHEME = "bearer "

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who has a token of a file.

    Args:
        path: the file.
        watchers: are told whom it does not let in.

    Raises:
        SecurityFileError: where the file cannot be used.
    """

    def __init__(self, path: Path, watchers: Watchers | None = None) -> None:
        self._clients = Reloading([path], lambda: read_clients(path))
        if not self._clients.value.clients:
            logger.warning("%s names no client: nobody may call", path)
        self._quotas = Quotas()
        self._watchers = watchers or Watchers()

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  (the type of a handler is gRPC's own affair)
        """The call's handler, or one that refuses it."""
        if handler_call_details.method in EXEMPT:
            return await continuation(handler_call_details)
        method = handler_call_details.method.rpartition("/")[2]
        known = method if method in METHODS else "another method"  # what the caller wrote is not for the log
        client = self._client(handler_call_details)
        if client is None:
            return self._refusing(UnknownClientError(), known)
        current_client.set(client.name)
        if client.methods is not None and method not in client.methods:
            return self._refusing(MethodNotAllowedError(client, known), known)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # there is no such method
        quota = self._quotas.of(client)
        current_quota.set(quota)
        return self._counted(handler, quota, known) if handler.response_streaming else handler

    def _client(self, details: grpc.HandlerCallDetails) -> Client | None:
        """Who calls."""
        said = [value for key, value in details.invocation_metadata or () if key.lower() == KEY]
        token = said[0] if len(said) == 1 else None
        if not isinstance(token, str) or not token.lower().startswith(SCHEME):
            return None
        return self._clients.value.find(token[len(SCHEME) :].strip())

    def _refusing(self, error: Exception, method: str) -> Any:  # noqa: ANN401
        """A handler that answers with an error, without waiting for the request."""

        async def refuse(requests: object, context: Context) -> AsyncIterator[Any]:
            await self._refuse(error, method, context)
            yield  # never: but a stream's handler is an async generator

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _counted(self, handler: Any, quota: Quota, method: str) -> Any:  # noqa: ANN401
        """A streaming handler, counted while it runs.

        It takes its only request from an iterator, so that a call too many is refused before its request is received;
        and so that nothing is counted whose end would be missed: gRPC leaves handlers of one request out where none
        comes.
        """

        async def counted(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                quota.open_stream()
            except TooManyStreamsError as error:
                await self._refuse(error, method, context)
            try:
                if handler.request_streaming:
                    answers = handler.stream_stream(requests, context)
                else:
                    answers = handler.unary_stream(await _only(requests, context), context)
                async with aclosing(answers):  # its end must not wait for the garbage collector
                    async for answer in answers:
                        yield answer
            finally:
                quota.close_stream()

        return grpc.stream_stream_rpc_method_handler(
            counted,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _refuse(self, error: Exception, method: str, context: Context) -> None:
        status = status_of(error)
        self._watchers.turned_away(
            method, tuple(context.invocation_metadata() or ()), status.code.name, reason_of(status)
        )
        logger.debug("refused %s of %s: %s", method, context.peer(), status.code.name)
        await context.abort_with_status(status)


async def _only(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
    async for request in requests:
        return request
    await context.abort_with_status(status_of(InvalidRequestError("request", "there is none")))
    return None  # never: abort_with_status has raised
