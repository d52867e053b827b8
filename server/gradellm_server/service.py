"""ExplainerService over grpc.aio: bytes in, jobs on the engine thread, events out.

Requests are parsed here and not by gRPC, which would answer bytes that are no message with UNKNOWN.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from gradellm_engine import Engine
from gradellm_server import translate
from gradellm_server.engine_thread import EngineThread, Job, Tell
from gradellm_server.status import status_of

Context = grpc.aio.ServicerContext[bytes, Message]
Stream = Callable[[bytes, Context], AsyncIterator[Message]]
Unary = Callable[[bytes, Context], Awaitable[Message]]

logger = logging.getLogger(__name__)


class ExplainerService:
    """The service's handlers, over one engine and its thread."""

    def __init__(self, engine: Engine, thread: EngineThread, *, max_message_bytes: int) -> None:
        self._engine, self._thread = engine, thread
        self._info = translate.server_info(
            engine,
            {
                "max_running_requests": thread.max_running,
                "max_queued_requests": thread.max_queued,
                "max_queued_tokens": thread.max_queued_tokens,
                "max_message_bytes": max_message_bytes,
            },
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server registers."""
        stream: Any = partial(grpc.unary_stream_rpc_method_handler, response_serializer=_serialise)
        unary: Any = partial(grpc.unary_unary_rpc_method_handler, response_serializer=_serialise)
        return grpc.method_handlers_generic_handler(
            translate.SERVICE_NAME,
            {
                **{name: stream(self._streaming(*call)) for name, call in translate.STREAMS.items()},
                **{name: unary(self._single(*call)) for name, call in translate.SINGLES.items()},
                "GetServerInfo": unary(self._get_server_info),
            },
        )

    def _streaming(self, kind: type[Message], work: Callable[..., Any], answer: type[Any]) -> Stream:
        tell: Tell[Message] = partial(translate.answers, answer, self._engine)

        async def handle(payload: bytes, context: Context) -> AsyncIterator[Message]:
            began = time.monotonic()
            job: Job[Message] | None = None
            count, outcome = 0, "CANCELLED"
            try:
                job = self._thread.submit(partial(work, translate.parse(kind, payload)), tell)
                async for event in job:
                    yield event
                    count += 1
                outcome = "OK"
            except Exception as error:  # everything has a status; a cancelled call raises no Exception
                status = status_of(error)
                outcome = status.code.name
                await context.abort_with_status(status)
            finally:
                # Also when the client has left, or its deadline has passed: the slot is free before the next step.
                if job is not None:
                    job.cancel()
                logger.info(
                    "%s %s: %d events in %.3f s", kind.DESCRIPTOR.name, outcome, count, time.monotonic() - began
                )

        return handle

    def _single(self, kind: type[Message], work: Callable[..., Any]) -> Unary:
        async def handle(payload: bytes, context: Context) -> Message:
            job: Job[Message] | None = None
            try:
                job = self._thread.submit(partial(work, translate.parse(kind, payload)), _tells_nothing)
                return await anext(aiter(job))
            except Exception as error:
                await context.abort_with_status(status_of(error))
                raise  # for the type checker: abort_with_status has raised
            finally:
                if job is not None:
                    job.cancel()

        return handle

    async def _get_server_info(self, payload: bytes, context: Context) -> Message:
        try:
            translate.check_info_request(payload)
        except Exception as error:
            await context.abort_with_status(status_of(error))
        return self._info


def _tells_nothing(event: object) -> Sequence[Message]:
    """A single answer has no events."""
    return []


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
