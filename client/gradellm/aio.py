"""The client for asyncio, the twin of `gradellm.client`; what they share is in `gradellm.transport.calls`."""

from __future__ import annotations

import asyncio
import copy
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from gradellm.errors import (
    CallCancelledError,
    ClientClosedError,
    DeadlineExceededError,
    UnavailableError,
)
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation.explanation import Collector
from gradellm.explanation.verify import contrast_keywords, explained_row
from gradellm.local.server import LocalServer
from gradellm.transport import calls
from gradellm.transport.credentials import Security
from gradellm.transport.load_balancing import Rotation, check_ports, may_be_several, split
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.retry import Retry
from gradellm.v1 import explainer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.words import Word
    from gradellm.local.server import LocalServerKeywords
    from gradellm.models import Attribution, Event, ServerInfo, TokenizedPrompt
    from gradellm.transport.credentials import Tls
    from gradellm.transport.retry import Attempts
    from gradellm.wire.requests import (
        AttributeKeywords,
        CallKeywords,
        EvaluateKeywords,
        GenerateKeywords,
        TokenizeKeywords,
    )

__all__ = ["AsyncClient"]

Result = TypeVar("Result")


class AsyncClient:
    """`gradellm.Client` for asyncio: the same calls, keywords and exceptions.

    It connects at its first call and belongs to the event loop of that call.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None = None,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        retry: Retry | None = Retry(),  # noqa: B008 (it cannot change)
    ) -> None:
        self.targets = split(target)
        self.target = ",".join(self.targets)
        self._security = Security(self.targets, credentials=credentials, tls=tls, token=token)
        if self._security.credentials is None:
            check_ports(self.targets)
        self._retry = retry
        self._rotation = Rotation(len(self.targets))
        self._has_settled = [not may_be_several(one) for one in self.targets]
        self._settling = asyncio.Lock()
        self._closing = asyncio.Event()  # which twins share, as all above
        self._server: LocalServer | None = None

    @cached_property
    def _channels(self) -> list[grpc.aio.Channel]:
        """The connections, made at the first call, since they take the running event loop."""
        return [self._connect(target) for target in self.targets]

    def _connect(self, target: str) -> grpc.aio.Channel:
        if self._security.credentials is None:
            return grpc.aio.insecure_channel(target, calls.channel_options(target))
        return grpc.aio.secure_channel(target, self._security.credentials, calls.channel_options(target))

    @cached_property
    def _stubs(self) -> list[explainer_pb2_grpc.ExplainerServiceStub]:
        return [explainer_pb2_grpc.ExplainerServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]

    @classmethod
    async def local(cls, **keywords: Unpack[LocalServerKeywords]) -> Self:
        """Start a server for this client alone, as `Client.local` does."""
        server = LocalServer(keywords)
        client = cls(server.target)
        client._server = server
        try:
            for pause_seconds in server.startup():
                await asyncio.sleep(pause_seconds)
                if server.may_answer and await client._answers():
                    break
        except BaseException:
            await client.close()
            raise
        return client

    async def _answers(self) -> bool:
        call = calls.server_info({"timeout": LocalServer.PROBE_SECONDS})
        try:
            await self._answer(call, None)
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
        """Generate a completion: yield events as `Client.generate` does.

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
        """Generate a completion and return it with its attribution, collected. Keywords as in `Client.generate`."""
        return await _collected(self._events(calls.generate(prompt, keywords), on_event))

    def attribute_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Explain a completion that exists already. Keywords as in `Client.attribute_events`."""
        return self._events(calls.attribute(prompt, keywords), on_event)

    async def attribute(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Explanation:
        """Explain a completion that exists already, collected. Keywords as in `Client.attribute_events`."""
        return await _collected(self._events(calls.attribute(prompt, keywords), on_event))

    async def contrast(
        self, explanation: Explanation, place: Word | int, instead: str | int, **keywords: Unpack[CallKeywords]
    ) -> Attribution:
        """Tell why a token came and not another one: scores for the difference of their logits, one a prompt token.

        `place` is a word of the explanation (its first token) or a token's place in the completion; `instead` is a
        text, whose first token is meant, a token id, or "runner_up".
        """
        index, asked = contrast_keywords(explanation, place, instead)
        return explained_row(await self.attribute(**cast("AttributeKeywords", {**asked, **keywords})), index)

    def evaluate_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Tell how faithful explanations of a completion are. Keywords as in `Client.evaluate_events`."""
        return self._events(calls.evaluate(prompt, keywords), on_event)

    async def evaluate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> EvaluationReport:
        """Tell how faithful explanations of a completion are, collected. Keywords as in `Client.evaluate_events`."""
        events = self._events(calls.evaluate(prompt, keywords), on_event)
        return EvaluationReport.from_events([event async for event in events])

    async def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """Render and tokenise a prompt exactly as `generate` would. Keywords: messages, prompt_ids, segments."""
        return await self._answer(calls.tokenize(prompt, keywords), self._retry)

    async def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """Ask which model is served, what can be asked of it and where the limits are."""
        return await self._answer(calls.server_info(keywords), self._retry)

    def with_token(self, token: str | None) -> Self:
        """Return this client for another caller: by that token, over the same connections.

        It is of use until this client is closed; it need not be closed itself.
        """
        _ = self._stubs  # which the twin shares, and so its connections
        twin = copy.copy(self)
        twin._security = Security(self.targets, credentials=self._security.credentials, token=token)
        return twin

    async def close(self) -> None:
        """Cancel what is under way, close the connections, and end the server if it is this client's own."""
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

    async def _answer(self, call: calls.Call[Result], retry: Retry | None) -> Result:
        attempts = call.attempts(retry, self.targets)
        while True:
            self._check_open()
            index = self._rotation.take()
            try:
                await self._settle(index, attempts)
                send = getattr(self._stubs[index], call.rpc)
                answer = await send(call.request, timeout=attempts.seconds_left, metadata=self._security.metadata)
            except grpc.RpcError as error:
                await self._wait_after(error, call, attempts, index)
            except asyncio.CancelledError as error:
                self._raise_if_closed_meanwhile(error)
                raise
            else:
                self._rotation.worked(index)
                return call.read(answer)

    def _events(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None = None
    ) -> AsyncGenerator[Event, None]:
        self._check_open()
        return self._stream(call, on_event)

    async def _stream(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None
    ) -> AsyncGenerator[Event, None]:
        stream, attempts = ResumableStream(call), call.attempts(self._retry, self.targets)
        while True:
            self._check_open()
            index = self._rotation.take()
            await self._settle(index, attempts)
            send = getattr(self._stubs[index], call.rpc)
            responses = send(stream.request, timeout=attempts.seconds_left, metadata=self._security.metadata)
            failure: grpc.RpcError | UnavailableError | None
            try:
                while True:
                    try:
                        response = await responses.read()
                    except grpc.RpcError as error:
                        failure = None if stream.is_over else error
                        break
                    if response is grpc.aio.EOF:
                        failure = stream.cut_off(self.targets[index])
                        break
                    if (event := stream.take(response, self.targets[index])) is not None:
                        attempts.progressed()
                        if on_event is not None:
                            on_event(event)
                        if event.prompt_progress is None:  # who iterates has one of the documented kinds
                            yield event
            except asyncio.CancelledError as error:
                self._raise_if_closed_meanwhile(error)
                raise
            finally:
                responses.cancel()  # without effect on a call that is over
            if failure is None:
                self._rotation.worked(index)
                return
            await self._wait_after(failure, call, attempts, index)

    async def _settle(self, index: int, attempts: Attempts) -> None:
        """Before the first call to a target that may be several servers, wait for their connections."""
        if self._has_settled[index]:
            return
        async with self._settling:
            if not self._has_settled[index]:
                channel, until = self._channels[index], time.monotonic() + attempts.at_most(calls.CONNECT_SECONDS)
                while time.monotonic() < until:
                    if channel.get_state(try_to_connect=True) in calls.CONNECTED:
                        break
                    await asyncio.sleep(0.01)
                await asyncio.sleep(attempts.at_most(calls.SETTLE_SECONDS))
                self._has_settled[index] = True
        self._check_open()

    async def _wait_after(
        self, failure: grpc.RpcError | UnavailableError, call: calls.Call[Any], attempts: Attempts, index: int
    ) -> None:
        """Wait for the next try; raise what the caller gets where there is none."""
        pause = call.pause_after(failure, attempts, self._rotation, index, self.targets[index])
        with suppress(TimeoutError):  # the ordinary end; closing ends it sooner
            await asyncio.wait_for(self._closing.wait(), pause)

    def _raise_if_closed_meanwhile(self, error: asyncio.CancelledError) -> None:
        """Tell the closing of the channel from the cancelling of the task: gRPC raises the same for both."""
        task = asyncio.current_task()
        if self._closing.is_set() and not (task and task.cancelling()):
            raise CallCancelledError("the call was cancelled: its client was closed meanwhile") from error

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientClosedError("this client is closed; make a new one")


async def _collected(events: AsyncGenerator[Event, None]) -> Explanation:
    collector = Collector()
    async for event in events:
        collector.add(event)
    return collector.explanation()
