"""The synchronous client. `gradellm.aio` is the asynchronous one; they share `gradellm.transport.calls`."""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from gradellm.errors import ClientClosedError, DeadlineExceededError, UnavailableError
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation.explanation import Explanation
from gradellm.explanation.verify import contrast_keywords, explained_row
from gradellm.local.server import LocalServer
from gradellm.transport import calls
from gradellm.transport.credentials import Security
from gradellm.transport.load_balancing import Rotation, check_ports, may_be_several, split
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.retry import Retry
from gradellm.v1 import explainer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from google.protobuf.message import Message

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

__all__ = ["Client"]

Result = TypeVar("Result")


class Client:
    """Talks to the explanation server at `target`: "host:port", "unix:/path" or "dns:///name:port".

    Several targets, as a list or with commas between, are servers that host the same model: calls take turns over
    them, as they do over the addresses of a dns:/// name, those that are added to it while it is used among them. Close
    it after use, or use it as a context manager. It may be shared between threads. Connections are plain text unless
    `tls` says otherwise: True, or `Tls(ca=..., cert=..., key=...)` for certificates of one's own. `token` is what a
    server with `--tokens` knows its clients by; it is not sent in the open to other machines. `credentials` are gRPC's
    own, in place of `tls`.

    A call that finds no server, or no room, is tried again as `retry` says, and a stream that breaks off in its midst
    is taken up where it was, on another server or on the same one. With retry=None every failure is raised at once.

    Every call takes the keyword `timeout`, in seconds, and raises the exceptions of `gradellm.errors`.
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
        self._channels = [self._connect(one) for one in self.targets]
        self._stubs = [explainer_pb2_grpc.ExplainerServiceStub(one) for one in self._channels]  # type: ignore[no-untyped-call]
        self._has_settled = [not may_be_several(one) for one in self.targets]
        self._settling = threading.Lock()
        self._closing = threading.Event()
        self._server: LocalServer | None = None

    def _connect(self, target: str) -> grpc.Channel:
        if self._security.credentials is None:
            return grpc.insecure_channel(target, calls.channel_options(target))
        return grpc.secure_channel(target, self._security.credentials, calls.channel_options(target))

    @classmethod
    def local(cls, **keywords: Unpack[LocalServerKeywords]) -> Self:
        """Start a server for this client alone, and end it when the client is closed or this process ends.

        Keywords: model (a path or hub id; the demo model by default), dtype, device, server_args,
        startup_timeout_seconds, inherit_stderr; see LocalServerKeywords.

        Raises LocalServerError where it does not start, with the server's own words.
        """
        server = LocalServer(keywords)
        client = cls(server.target)
        client._server = server
        try:
            for pause_seconds in server.startup():
                time.sleep(pause_seconds)
                if server.may_answer and client._answers():
                    break
        except BaseException:
            client.close()
            raise
        return client

    def _answers(self) -> bool:
        call = calls.server_info({"timeout": LocalServer.PROBE_SECONDS})
        try:
            self._answer(call, None)
        except (UnavailableError, DeadlineExceededError):
            return False
        return True

    def generate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Generator[Event, None, None]:
        """Generate a completion: yield `started`, then tokens and their attributions as they come, then `finished`.

        The request is checked at once and sent when the first event is asked for. Leaving the loop cancels the call.
        `on_event` is called with every event as it comes, with `prompt_progress` among them, which is not yielded: how
        far a long prompt is read.

        Keywords: messages or prompt_ids in place of prompt, segments; max_new_tokens, temperature, top_k, top_p, seed,
        stop, num_alternatives, forced_ids, first_attribution; attribution ("paper", "unloosened", "grad_eclip",
        "knockout", or None for tokens alone), method, loosening, layers, similarity, rotary, rectify, magnitude,
        normalise_over, target, contrast, sources, resolution, top_k_sources, delivery, chunk_size. GenerateKeywords
        says what each means.
        """
        return self._events(calls.generate(prompt, keywords), on_event)

    def explain(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Explanation:
        """Generate a completion and return it with its attribution, collected.

        `on_event` is called with every event as it comes. Other keywords as in `generate`.
        """
        return Explanation.from_events(self._events(calls.generate(prompt, keywords), on_event))

    def attribute_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Generator[Event, None, None]:
        """Explain a completion that exists already: the same events as `generate` for tokens that the caller gives.

        `on_event` is called with every event as it comes, as in `generate`.
        Keywords: completion or completion_ids; messages, prompt_ids, segments; num_alternatives; and those of
        attribution as in `generate`. AttributeKeywords says what each means.
        """
        return self._events(calls.attribute(prompt, keywords), on_event)

    def attribute(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Explanation:
        """Explain a completion that exists already, collected.

        `on_event` is called with every event as it comes. Other keywords as in `attribute_events`.
        """
        return Explanation.from_events(self._events(calls.attribute(prompt, keywords), on_event))

    def contrast(
        self, explanation: Explanation, place: Word | int, instead: str | int, **keywords: Unpack[CallKeywords]
    ) -> Attribution:
        """Tell why a token came and not another one: scores for the difference of their logits, one a prompt token.

        `place` is a word of the explanation (its first token) or a token's place in the completion; `instead` is a
        text, whose first token is meant, a token id, or "runner_up".
        """
        index, asked = contrast_keywords(explanation, place, instead)
        return explained_row(self.attribute(**cast("AttributeKeywords", {**asked, **keywords})), index)

    def evaluate_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> Generator[Event, None, None]:
        """Tell how faithful explanations of a completion are: `started`, tokens, progress and items, then `summary`.

        `on_event` is called with every event as it comes, as in `generate`.
        Keywords: completion, completion_ids, labels or explanation; messages, prompt_ids, segments; max_new_tokens and
        others for a completion that is generated first; methods, scores, metrics, pis, samples, stride, offset, seed,
        perturb, perturb_positions, removal, raw_scores, rationale. EvaluateKeywords says what each means.
        """
        return self._events(calls.evaluate(prompt, keywords), on_event)

    def evaluate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> EvaluationReport:
        """Tell how faithful explanations of a completion are, collected.

        `on_event` is called with every event as it comes. Other keywords as in `evaluate_events`.
        """
        return EvaluationReport.from_events(self._events(calls.evaluate(prompt, keywords), on_event))

    def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """Render and tokenise a prompt exactly as `generate` would. Keywords: messages, prompt_ids, segments."""
        return self._answer(calls.tokenize(prompt, keywords), self._retry)

    def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """Ask which model is served, what can be asked of it and where the limits are."""
        return self._answer(calls.server_info(keywords), self._retry)

    def with_token(self, token: str | None) -> Self:
        """Return this client for another caller: by that token, over the same connections.

        It is of use until this client is closed; it need not be closed itself.
        """
        twin = copy.copy(self)
        twin._security = Security(self.targets, credentials=self._security.credentials, token=token)
        return twin

    def close(self) -> None:
        """Cancel what is under way, close the connections, and end the server if it is this client's own."""
        self._closing.set()
        for channel in self._channels:
            channel.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, call: calls.Call[Result], retry: Retry | None) -> Result:
        attempts = call.attempts(retry, self.targets)
        while True:
            self._check_open()
            index = self._rotation.take()
            try:
                answer = self._send(index, call.rpc, call.request, attempts)
            except grpc.RpcError as error:
                self._wait_after(error, call, attempts, index)
            else:
                self._rotation.worked(index)
                return call.read(answer)

    def _events(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None = None
    ) -> Generator[Event, None, None]:
        self._check_open()
        return self._stream(call, on_event)

    def _stream(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None
    ) -> Generator[Event, None, None]:
        stream, attempts = ResumableStream(call), call.attempts(self._retry, self.targets)
        while True:
            self._check_open()
            index = self._rotation.take()
            responses = self._send(index, call.rpc, stream.request, attempts)
            failure: grpc.RpcError | UnavailableError | None
            try:
                while True:
                    try:
                        response = next(responses)
                    except StopIteration:
                        failure = stream.cut_off(self.targets[index])
                        break
                    except grpc.RpcError as error:
                        failure = None if stream.is_over else error
                        break
                    if (event := stream.take(response, self.targets[index])) is not None:
                        attempts.progressed()
                        if on_event is not None:
                            on_event(event)
                        if event.prompt_progress is None:  # who iterates has one of the documented kinds
                            yield event
            finally:
                responses.cancel()  # without effect on a call that is over
            if failure is None:
                self._rotation.worked(index)
                return
            self._wait_after(failure, call, attempts, index)

    def _send(self, index: int, rpc: str, request: Message, attempts: Attempts) -> Any:  # noqa: ANN401 (gRPC's)
        send = getattr(self._stubs[index], rpc)
        try:
            self._settle(index, attempts)
            return send(request, timeout=attempts.seconds_left, metadata=self._security.metadata)
        except ValueError:  # gRPC's word for a channel that another thread has just closed
            self._check_open()
            raise

    def _settle(self, index: int, attempts: Attempts) -> None:
        """Before the first call to a target that may be several servers, wait for their connections."""
        if self._has_settled[index]:
            return
        with self._settling:
            if self._has_settled[index]:
                return
            channel, is_known = self._channels[index], threading.Event()

            def changed(state: grpc.ChannelConnectivity) -> None:
                if state in calls.CONNECTED:
                    is_known.set()

            channel.subscribe(changed, try_to_connect=True)
            is_known.wait(attempts.at_most(calls.CONNECT_SECONDS))
            channel.unsubscribe(changed)
            self._closing.wait(attempts.at_most(calls.SETTLE_SECONDS))
            self._has_settled[index] = True

    def _wait_after(
        self, failure: grpc.RpcError | UnavailableError, call: calls.Call[Any], attempts: Attempts, index: int
    ) -> None:
        """Wait for the next try; raise what the caller gets where there is none."""
        self._closing.wait(call.pause_after(failure, attempts, self._rotation, index, self.targets[index]))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientClosedError("this client is closed; make a new one")
