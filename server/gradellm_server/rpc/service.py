"""ExplainerService over grpc.aio: each call becomes a job on the engine thread.

Requests are parsed here and not by gRPC, which would answer bytes that are not a valid message with UNKNOWN. What a
call asks of the engine is in `gradellm_server.rpc.rpcs`; a reader thread runs it.
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

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.auth.quota import QuotaReservation, current_quota
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.follow_feed import FollowFeed
from gradellm_server.engine_loop.job import ConvertEvent, Job
from gradellm_server.observability.call import Call, CallObservers
from gradellm_server.rpc import events_to_wire, requests_from_wire
from gradellm_server.rpc.follow import FollowRequests, flush_seconds
from gradellm_server.rpc.rpcs import SERVICE_NAME, STREAMING_RPCS, UNARY_RPCS, follow, num_tokens
from gradellm_server.rpc.server_info import server_info
from gradellm_server.rpc.status import reason_of, status_of

Context = grpc.aio.ServicerContext[bytes, Message]
StreamHandler = Callable[[bytes, Context], AsyncIterator[Message]]
UnaryHandler = Callable[[bytes, Context], Awaitable[Message]]


@dataclass
class ActiveCall:
    """A call that is being handled.

    Attributes:
        call: what its observers see.
        job: its request on the engine thread, once submitted.
        status: the error that it ends with, if any.
        quota: what its client is charged.
    """

    call: Call
    job: Job[Message] | None = None
    status: grpc.Status | None = None
    quota: QuotaReservation = field(default_factory=lambda: QuotaReservation(current_quota.get()))


class ExplainerService:
    """The handlers of the service, for one engine and its thread."""

    def __init__(
        self,
        engine: Engine,
        thread: EngineThread,
        *,
        max_message_bytes: int,
        follow_idle_seconds: float = 300.0,
        default_attribution: str = "recommended",
        observers: CallObservers | None = None,
    ) -> None:
        self._engine, self._thread = engine, thread
        self._default_preset, self._recommended = map(engine.concrete_preset, (default_attribution, "recommended"))
        self._observers = observers or CallObservers()
        self._follow_idle_seconds = follow_idle_seconds
        self._info = server_info(
            engine,
            {
                "max_running_requests": thread.max_running,
                "max_queued_requests": thread.max_queued,
                "max_queued_tokens": thread.max_queued_tokens,
                "max_message_bytes": max_message_bytes,
                "reader_timeout_seconds": thread.reader_timeout_seconds,
                "max_followed_requests": thread.max_followed,
                "follow_idle_seconds": follow_idle_seconds,
            },
            self._default_preset,
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a gRPC server."""
        stream: Any = partial(grpc.unary_stream_rpc_method_handler, response_serializer=_serialize)
        both_ways: Any = partial(grpc.stream_stream_rpc_method_handler, response_serializer=_serialize)
        unary: Any = partial(grpc.unary_unary_rpc_method_handler, response_serializer=_serialize)
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                **{name: stream(self._stream_handler(name, *rpc)) for name, rpc in STREAMING_RPCS.items()},
                **{name: unary(self._unary_handler(name, *rpc)) for name, rpc in UNARY_RPCS.items()},
                "Follow": both_ways(self._follow),
                "GetServerInfo": unary(self._get_server_info),
            },
        )

    def _stream_handler(
        self, name: str, request_type: type[Message], start: Callable[..., Any], response_type: type[Any]
    ) -> StreamHandler:
        convert: ConvertEvent[Message] = partial(events_to_wire.responses, response_type, self._engine)

        async def handle(payload: bytes, context: Context) -> AsyncIterator[Message]:
            with self._active_call(name, context) as active:
                active.quota.check()
                read = active.quota.reserving(partial(start, tenant=active.call.client))
                job = self._submit(active, requests_from_wire.parse(request_type, payload), len(payload), read, convert)
                job.on_slow_reader = partial(_abort_slow_reader, context, active)
                async for response in job:
                    yield response
                    self._observers.on_response(active.call, response)
            if active.status is not None:
                await context.abort_with_status(active.status)

        return handle

    def _unary_handler(self, name: str, request_type: type[Message], answer: Callable[..., Any]) -> UnaryHandler:
        async def handle(payload: bytes, context: Context) -> Message:
            with self._active_call(name, context) as active:
                active.quota.check()
                read = active.quota.charging(answer, num_tokens)
                request = requests_from_wire.parse(request_type, payload)
                job = self._submit(active, request, len(payload), read, _no_events)
                response = await anext(aiter(job))
                self._observers.on_response(active.call, response)
                return response
            return await _abort(context, active)

        return handle

    async def _get_server_info(self, payload: bytes, context: Context) -> Message:
        with self._active_call("GetServerInfo", context) as active:
            self._observers.on_request(active.call, requests_from_wire.parse(pb.GetServerInfoRequest, payload))
            self._observers.on_response(active.call, self._info)
            return self._info
        return await _abort(context, active)

    async def _follow(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        """Explain a completion while its tokens come."""
        convert: ConvertEvent[Message] = partial(events_to_wire.responses, pb.FollowResponse, self._engine)
        with self._active_call("Follow", context) as active:
            stats = active.call.stats
            active.quota.check()
            incoming = FollowRequests(aiter(requests), self._engine, self._follow_idle_seconds, stats)
            start, num_bytes = await incoming.start()
            read = active.quota.reserving(partial(follow, tenant=active.call.client))
            job = self._submit(active, start, num_bytes, read, convert, FollowFeed(flush_seconds(start)))
            job.on_slow_reader = partial(_abort_slow_reader, context, active)
            feeding = asyncio.create_task(incoming.feed(job))
            try:
                async for response in job:
                    yield response
                    incoming.on_response(response)
                    self._observers.on_response(active.call, response)
            finally:
                feeding.cancel()
        if active.status is not None:
            await context.abort_with_status(active.status)

    def _submit(
        self,
        active: ActiveCall,
        request: Message,
        num_bytes: int,
        read: Callable[..., Any],
        convert: ConvertEvent[Message],
        feed: FollowFeed | None = None,
    ) -> Job[Message]:
        """Submit a request of `num_bytes` to the engine thread."""
        self._observers.on_request(active.call, request)
        requests_from_wire.name_presets(request, self._default_preset, self._recommended)
        active.job = self._thread.submit(partial(read, request), convert, num_bytes, feed)
        return active.job

    @contextmanager
    def _active_call(self, name: str, context: Context) -> Iterator[ActiveCall]:
        """Observe a call from start to end, and free its resources; an error becomes the call's `status`.

        Observers see the end before the client does.
        """
        active = ActiveCall(Call.start(name, tuple(context.invocation_metadata() or ())))
        call = active.call
        self._observers.on_start(call)
        try:
            yield active
            call.code = "OK"
        except Exception as error:  # cancellation is no Exception, and leaves the code CANCELLED
            active.status = status_of(error)
            call.code, call.reason = active.status.code.name, reason_of(active.status)
        finally:
            # Also after a disconnect or a deadline: the slot is free before the next step.
            if active.job is not None:
                active.job.cancel()
            active.quota.settle()
            if call.code == "CANCELLED" and context.time_remaining() == 0:
                call.code = "DEADLINE_EXCEEDED"
            self._observers.on_end(call)


async def _abort(context: Context, active: ActiveCall) -> NoReturn:
    """End a unary call with its error."""
    if active.status is None:
        raise ValueError("a call without a response has a status")
    await context.abort_with_status(active.status)
    raise AssertionError  # for the type checker: abort_with_status has raised


def _abort_slow_reader(context: Context, active: ActiveCall, error: Exception) -> None:
    """Send the status of a stream whose handler is blocked in a write that the client does not read."""
    status = status_of(error)
    active.call.code, active.call.reason = status.code.name, reason_of(status)

    async def abort() -> None:
        with suppress(Exception):  # abort_with_status always raises
            await context.abort_with_status(status)

    task = asyncio.get_running_loop().create_task(abort())
    _pending_aborts.add(task)  # the event loop holds tasks by weak references alone
    task.add_done_callback(_pending_aborts.discard)


_pending_aborts: set[asyncio.Task[None]] = set()


def _no_events(event: object) -> Sequence[Message]:
    """A unary call has no events."""
    return []


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
