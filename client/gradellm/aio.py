"""The asyncio client, the counterpart of `gradellm.client`, which documents what the two share."""

from __future__ import annotations

import asyncio
import copy
import time
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from gradellm.errors import CallCancelledError, ClientClosedError, DeadlineExceededError, UnavailableError
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation.explanation import Collector
from gradellm.explanation.verification.replay import attribution_row, contrast_keywords
from gradellm.following.asynchronous import AsyncFollowing
from gradellm.following.openai_chunks import follow_openai_async
from gradellm.local.server import LocalServer
from gradellm.transport import calls
from gradellm.transport.channels import CONNECT_SECONDS, CONNECTED, REPLICA_SECONDS, channel_options
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.retry import Retry
from gradellm.transport.session import Session
from gradellm.v1 import explainer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from google.protobuf.message import Message

    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.words import Word
    from gradellm.following.openai_chunks import OpenAIItem
    from gradellm.following.stream import FollowedStream
    from gradellm.local.server import LocalServerKeywords
    from gradellm.models import Attribution, Event, ServerInfo, TokenizedPrompt
    from gradellm.transport.credentials import Tls
    from gradellm.transport.retry import Attempts
    from gradellm.wire.keywords import (
        AttributeKeywords,
        CallKeywords,
        EvaluateKeywords,
        FollowKeywords,
        GenerateKeywords,
        TokenizeKeywords,
    )

__all__ = ["AsyncClient"]

Result = TypeVar("Result")


class AsyncClient:
    """`gradellm.Client` for asyncio: the same calls, keywords and exceptions.

    It connects at its first call, and is bound to the event loop of that call.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None = None,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        retry: Retry | None = Retry(),  # noqa: B008 (immutable)
    ) -> None:
        self._session = Session(target, token=token, tls=tls, credentials=credentials, retry=retry)
        self.targets = self._session.targets
        self.target = ",".join(self.targets)
        self._connecting = asyncio.Lock()
        self._closing = asyncio.Event()
        self._server: LocalServer | None = None

    @cached_property
    def _channels(self) -> list[grpc.aio.Channel]:
        """The channels, made at the first call because they are bound to the running event loop."""
        return [self._connect(target) for target in self.targets]

    def _connect(self, target: str) -> grpc.aio.Channel:
        if self._session.credentials.channel is None:
            return grpc.aio.insecure_channel(target, channel_options(target))
        return grpc.aio.secure_channel(target, self._session.credentials.channel, channel_options(target))

    @cached_property
    def _stubs(self) -> list[explainer_pb2_grpc.ExplainerServiceStub]:
        return [explainer_pb2_grpc.ExplainerServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]

    @classmethod
    async def local(cls, **keywords: Unpack[LocalServerKeywords]) -> Self:
        """Start a local server, as `Client.local` does."""
        server = LocalServer(keywords)
        client = cls(server.target)
        client._server = server
        try:
            for delay_seconds in server.startup():
                await asyncio.sleep(delay_seconds)
                if server.is_listening and await client._is_ready():
                    break
        except BaseException:
            await client.close()
            raise
        return client

    async def _is_ready(self) -> bool:
        try:
            await self._unary(calls.server_info({"timeout": LocalServer.PROBE_SECONDS}), None)
        except (UnavailableError, DeadlineExceededError):
            return False
        return True

    def generate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Generate a completion and yield its events, as `Client.generate` does.

        Leaving the loop and `aclose()` cancel the call.
        """
        return self._events(calls.generate(prompt, keywords), on_event)

    async def explain(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Explanation:
        """Generate a completion and return it with its attribution. Keywords as in `Client.generate`."""
        return await _collect(self._events(calls.generate(prompt, keywords), on_event))

    def attribute_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Attribute a given completion, and yield events. Keywords as in `Client.attribute_events`."""
        return self._events(calls.attribute(prompt, keywords), on_event)

    async def attribute(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Explanation:
        """Attribute a given completion, and return it. Keywords as in `Client.attribute_events`."""
        return await _collect(self._events(calls.attribute(prompt, keywords), on_event))

    async def contrast(
        self, explanation: Explanation, place: Word | int, instead: str | int, **keywords: Unpack[CallKeywords]
    ) -> Attribution:
        """Return a contrastive attribution: why a token was generated instead of another one.

        Arguments as in `Client.contrast`.
        """
        index, replay = contrast_keywords(explanation, place, instead)
        return attribution_row(await self.attribute(**cast("AttributeKeywords", {**replay, **keywords})), index)

    def follow(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[FollowKeywords],
    ) -> AsyncFollowing:
        """Attribute a completion while another engine writes it, as `Client.follow` does."""
        call = calls.follow(prompt, keywords)
        self._check_open()
        return AsyncFollowing(partial(self._follow, call, on_event), call)

    def follow_openai(
        self, chunks: AsyncIterable[Any], *, choice: int = 0, **keywords: Unpack[FollowKeywords]
    ) -> AsyncGenerator[OpenAIItem, None]:
        """Attribute what a streaming response of the openai package says, as `Client.follow_openai` does."""
        return follow_openai_async(self, chunks, choice, keywords)

    def evaluate_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Evaluate attributions of a completion, and yield events. Keywords as in `Client.evaluate_events`."""
        return self._events(calls.evaluate(prompt, keywords), on_event)

    async def evaluate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> EvaluationReport:
        """Evaluate attributions of a completion, and return the report. Keywords as in `Client.evaluate_events`."""
        events = self._events(calls.evaluate(prompt, keywords), on_event)
        return EvaluationReport.from_events([event async for event in events])

    async def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """Render and tokenize a prompt exactly as `generate` does. Keywords: messages, prompt_ids, segments, tools."""
        return await self._unary(calls.tokenize(prompt, keywords), self._session.retry)

    async def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """Return the model, the supported methods and the limits."""
        return await self._unary(calls.server_info(keywords), self._session.retry)

    def with_token(self, token: str | None) -> Self:
        """Return a client for another caller that shares the connections of this one.

        It is closed with this client and need not be closed itself.
        """
        _ = self._stubs  # made before the copy, so that both clients share the connections
        client = copy.copy(self)
        client._session = self._session.with_token(token)
        return client

    def with_metadata(self, metadata: Iterable[tuple[str, str]]) -> Self:
        """Return a client whose calls have more gRPC metadata, as `Client.with_metadata` does."""
        _ = self._stubs  # made before the copy, so that both clients share the connections
        client = copy.copy(self)
        client._session = self._session.with_metadata(metadata)
        return client

    async def close(self) -> None:
        """Cancel running calls, close the connections, and stop the local server, if any."""
        self._closing.set()
        if "_channels" in self.__dict__:
            for channel in self._channels:
                await channel.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(self, call: calls.Call[Result], retry: Retry | None) -> Result:
        session = self._session
        attempts = session.attempts(call, retry)
        while True:
            self._check_open()
            index = session.rotation.pick()
            try:
                await self._await_connections(index, attempts)
                response = await self._send(index, call.rpc, call.request, attempts)
            except grpc.RpcError as error:
                await self._wait_before_retry(error, call, attempts, index)
            except asyncio.CancelledError as error:
                self._raise_if_closed(error)
                raise
            else:
                session.rotation.mark_up(index)
                return call.read(response)

    def _follow(
        self,
        call: calls.Call[Event | None],
        on_event: Callable[[Event], object] | None,
        stream: FollowedStream,
        messages: Callable[[], AsyncIterator[Message]],
    ) -> AsyncGenerator[Event, None]:
        return self._stream(call, on_event, stream, messages)

    def _events(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None
    ) -> AsyncGenerator[Event, None]:
        self._check_open()
        return self._stream(call, on_event)

    async def _stream(
        self,
        call: calls.Call[Event | None],
        on_event: Callable[[Event], object] | None,
        stream: ResumableStream | None = None,
        messages: Callable[[], AsyncIterator[Message]] | None = None,
    ) -> AsyncGenerator[Event, None]:
        session = self._session
        stream = stream or ResumableStream(call)
        attempts = session.attempts(call, session.retry)
        while True:
            self._check_open()
            index = session.rotation.pick()
            await self._await_connections(index, attempts)
            request = stream.request if messages is None else messages()
            responses = stream.running = self._send(index, call.rpc, request, attempts)
            failure: grpc.RpcError | UnavailableError | None
            try:
                while True:
                    try:
                        response = await responses.read()
                    except grpc.RpcError as error:
                        failure = None if stream.is_over else error
                        break
                    if response is grpc.aio.EOF:
                        failure = stream.truncated(self.targets[index])
                        break
                    if (event := session.accept(response, stream, attempts, index, on_event)) is not None:
                        yield event
            except asyncio.CancelledError as error:
                self._raise_if_closed(error)
                raise
            finally:
                responses.cancel()  # no effect on a call that has ended
            if failure is None:
                session.rotation.mark_up(index)
                return
            await self._wait_before_retry(failure, call, attempts, index)

    def _send(self, index: int, rpc: str, request: Message | AsyncIterator[Message], attempts: Attempts) -> Any:  # noqa: ANN401
        send = getattr(self._stubs[index], rpc)
        return send(request, timeout=attempts.seconds_left, metadata=self._session.credentials.metadata)

    async def _await_connections(self, index: int, attempts: Attempts) -> None:
        """Before the first call to a target that resolves to many, wait for the connections of its replicas."""
        has_connections = self._session.has_connections
        if has_connections[index]:
            return
        async with self._connecting:
            if not has_connections[index]:
                channel, until = self._channels[index], time.monotonic() + attempts.at_most(CONNECT_SECONDS)
                while time.monotonic() < until:
                    if channel.get_state(try_to_connect=True) in CONNECTED:
                        break
                    await asyncio.sleep(0.01)
                await asyncio.sleep(attempts.at_most(REPLICA_SECONDS))
                has_connections[index] = True
        self._check_open()

    async def _wait_before_retry(
        self, failure: grpc.RpcError | UnavailableError, call: calls.Call[Any], attempts: Attempts, index: int
    ) -> None:
        """Wait before the next attempt. Raises the error of the call if there is none."""
        delay = self._session.next_delay(failure, call, attempts, index)
        with suppress(TimeoutError):  # the regular end of the wait; closing the client ends it sooner
            await asyncio.wait_for(self._closing.wait(), delay)

    def _raise_if_closed(self, error: asyncio.CancelledError) -> None:
        """Raise CallCancelledError for a closed client; gRPC raises CancelledError for that and for cancelled tasks."""
        task = asyncio.current_task()
        if self._closing.is_set() and not (task and task.cancelling()):
            raise CallCancelledError("the call was cancelled: its client was closed during the call") from error

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientClosedError("this client is closed; make a new one")


async def _collect(events: AsyncGenerator[Event, None]) -> Explanation:
    collector = Collector()
    async for event in events:
        collector.add(event)
    return collector.explanation()
