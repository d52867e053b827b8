"""ExplainerService over grpc.aio: bytes in, jobs on the engine thread, events out.

Requests are parsed here and not by gRPC, which would answer bytes that are no message with UNKNOWN.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from gradellm_engine import Engine
from gradellm_server.auth.quota import Meter, current_quota
from gradellm_server.engine_thread import EngineThread, Job, Tell
from gradellm_server.observability.call import Call, Watchers
from gradellm_server.rpc import conversion
from gradellm_server.rpc.status import reason_of, status_of

Context = grpc.aio.ServicerContext[bytes, Message]
Stream = Callable[[bytes, Context], AsyncIterator[Message]]
Unary = Callable[[bytes, Context], Awaitable[Message]]


@dataclass
class Watched:
    """A call that is watched, what it has on the engine thread, what it failed with, and who is charged for it."""

    call: Call
    job: Job[Message] | None = None
    status: grpc.Status | None = None
    meter: Meter = field(default_factory=lambda: Meter(current_quota.get()))


class ExplainerService:
    """The service's handlers, over one engine and its thread."""

    def __init__(
        self, engine: Engine, thread: EngineThread, *, max_message_bytes: int, watchers: Watchers | None = None
    ) -> None:
        self._engine, self._thread = engine, thread
        self._watchers = watchers or Watchers()
        self._info = conversion.server_info(
            engine,
            {
                "max_running_requests": thread.max_running,
                "max_queued_requests": thread.max_queued,
                "max_queued_tokens": thread.max_queued_tokens,
                "max_message_bytes": max_message_bytes,
                "reader_timeout_seconds": thread.reader_timeout_seconds,
            },
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server registers."""
        stream: Any = partial(grpc.unary_stream_rpc_method_handler, response_serializer=_serialise)
        unary: Any = partial(grpc.unary_unary_rpc_method_handler, response_serializer=_serialise)
        return grpc.method_handlers_generic_handler(
            conversion.SERVICE_NAME,
            {
                **{name: stream(self._streaming(name, *call)) for name, call in conversion.STREAMS.items()},
                **{name: unary(self._single(name, *call)) for name, call in conversion.SINGLES.items()},
                "GetServerInfo": unary(self._get_server_info),
            },
        )

    def _streaming(self, name: str, kind: type[Message], work: Callable[..., Any], answer: type[Any]) -> Stream:
        tell: Tell[Message] = partial(conversion.answers, answer, self._engine)

        async def handle(payload: bytes, context: Context) -> AsyncIterator[Message]:
            with self._watched(name, context) as watched:
                metered = watched.meter.metered(partial(work, tenant=watched.call.client))
                job = self._submit(watched, kind, payload, metered, tell)
                job.when_abandoned = partial(_tell_abandoned, context, watched)
                async for event in job:
                    yield event
                    self._watchers.answered(watched.call, event)
            if watched.status is not None:
                await context.abort_with_status(watched.status)

        return handle

    def _single(self, name: str, kind: type[Message], work: Callable[..., Any]) -> Unary:
        async def handle(payload: bytes, context: Context) -> Message:
            with self._watched(name, context) as watched:
                counted = watched.meter.counted(work, conversion.num_tokens)
                job = self._submit(watched, kind, payload, counted, _tells_nothing)
                answer = await anext(aiter(job))
                self._watchers.answered(watched.call, answer)
                return answer
            return await _abort(context, watched)

        return handle

    async def _get_server_info(self, payload: bytes, context: Context) -> Message:
        with self._watched("GetServerInfo", context) as watched:
            self._watchers.read(watched.call, conversion.info_request(payload))
            self._watchers.answered(watched.call, self._info)
            return self._info
        return await _abort(context, watched)

    def _submit(
        self, watched: Watched, kind: type[Message], payload: bytes, work: Callable[..., Any], tell: Tell[Message]
    ) -> Job[Message]:
        """A request on its way to the engine thread, taken off it when the call ends."""
        watched.meter.check()
        request = conversion.parse(kind, payload)
        self._watchers.read(watched.call, request)
        watched.job = self._thread.submit(partial(work, request), tell, len(payload))
        return watched.job

    @contextmanager
    def _watched(self, name: str, context: Context) -> Iterator[Watched]:
        """Have a call watched from its beginning to its end; an error becomes its status, to be told by the caller.

        Watchers know of the end before the client does.
        """
        watched = Watched(Call.arriving(name, tuple(context.invocation_metadata() or ())))
        call = watched.call
        self._watchers.began(call)
        try:
            yield watched
            call.code = "OK"
        except Exception as error:  # everything has a status; a cancelled call raises no Exception
            watched.status = status_of(error)
            call.code, call.reason = watched.status.code.name, reason_of(watched.status)
        finally:
            # Also when the client has left, or its deadline has passed: the slot is free before the next step.
            if watched.job is not None:
                watched.job.cancel()
            watched.meter.settle()
            if call.code == "CANCELLED" and context.time_remaining() == 0:
                call.code = "DEADLINE_EXCEEDED"
            self._watchers.ended(call)


async def _abort(context: Context, watched: Watched) -> NoReturn:
    """End a call with the error that it came to."""
    if watched.status is None:
        raise ValueError("a call without an answer has a status")
    await context.abort_with_status(watched.status)
    raise AssertionError  # for the type checker: abort_with_status has raised


def _tell_abandoned(context: Context, watched: Watched, error: Exception) -> None:
    """Send the end of a stream whose handler is blocked in a message that the client does not read."""
    status = status_of(error)
    watched.call.code, watched.call.reason = status.code.name, reason_of(status)

    async def tell() -> None:
        with suppress(Exception):  # abort raises what would end a handler; here it ends this task
            await context.abort_with_status(status)

    task = asyncio.get_running_loop().create_task(tell())
    _telling.add(task)  # the loop itself keeps no task alive
    task.add_done_callback(_telling.discard)


_telling: set[asyncio.Task[None]] = set()


def _tells_nothing(event: object) -> Sequence[Message]:
    """A single answer has no events."""
    return []


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
