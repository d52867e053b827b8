"""The synchronous client.

`gradellm.aio` is its asyncio counterpart. Each of the two owns its gRPC channels and waits in its own way; requests,
retries, load balancing and resumed streams are shared (`gradellm.transport`: calls, session and resumable_stream).
"""

from __future__ import annotations

import copy
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from gradellm.errors import ClientClosedError, DeadlineExceededError, UnavailableError
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation.explanation import Explanation
from gradellm.explanation.verification.replay import attribution_row, contrast_keywords
from gradellm.following.openai_chunks import follow_openai
from gradellm.following.synchronous import Following
from gradellm.local.server import LocalServer
from gradellm.transport import calls
from gradellm.transport.channels import CONNECT_SECONDS, CONNECTED, REPLICA_SECONDS, channel_options
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.retry import Retry
from gradellm.transport.session import Session
from gradellm.v1 import explainer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from google.protobuf.message import Message

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

__all__ = ["Client"]

Result = TypeVar("Result")


class Client:
    """Client of the explanation server at `target`: "host:port", "unix:/path" or "dns:///name:port".

    Several targets, as a list or separated by commas, are replicas that host the same model: calls are balanced over
    them round robin, as they are over the addresses of a dns:/// name, including addresses that are added later. The
    client is thread-safe. Close it after use, or use it as a context manager.

    Connections are unencrypted by default. `tls` is True, or `Tls(ca=..., cert=..., key=...)` for your own
    certificates; `credentials` are gRPC channel credentials, instead of `tls`. `token` is the bearer token for a
    server with `--tokens`; it is not sent unencrypted to other machines.

    A call that finds no server or no capacity is retried by the policy `retry`, and a stream that breaks off is
    resumed, on another server or on the same one. With retry=None every failure is raised at once.

    Every call takes the keyword `timeout`, in seconds, and raises the exceptions of `gradellm.errors`.
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
        self._channels = [self._connect(target) for target in self.targets]
        self._stubs = [explainer_pb2_grpc.ExplainerServiceStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._connecting = threading.Lock()
        self._closing = threading.Event()
        self._server: LocalServer | None = None

    def _connect(self, target: str) -> grpc.Channel:
        if self._session.credentials.channel is None:
            return grpc.insecure_channel(target, channel_options(target))
        return grpc.secure_channel(target, self._session.credentials.channel, channel_options(target))

    @classmethod
    def local(cls, **keywords: Unpack[LocalServerKeywords]) -> Self:
        """Start a local server, and stop it when the client is closed or this process ends.

        Keywords: model (a path or hub id; by default the demo model), dtype, device, server_args,
        startup_timeout_seconds, inherit_stderr; see LocalServerKeywords.

        Raises LocalServerError, with the last lines of its log, if it does not start.
        """
        server = LocalServer(keywords)
        client = cls(server.target)
        client._server = server
        try:
            for delay_seconds in server.startup():
                time.sleep(delay_seconds)
                if server.is_listening and client._is_ready():
                    break
        except BaseException:
            client.close()
            raise
        return client

    def _is_ready(self) -> bool:
        try:
            self._unary(calls.server_info({"timeout": LocalServer.PROBE_SECONDS}), None)
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
        """Generate a completion and yield its events: `started`, tokens and their attributions, `finished`.

        The request is validated at once and sent when iteration begins. Leaving the loop cancels the call. `on_event`
        is called with every event, including `prompt_progress`, the progress of a long prefill, which is not yielded.

        Keywords: messages or prompt_ids in place of prompt, segments, tools, options of the chat template;
        max_new_tokens, temperature, top_k, top_p, seed, stop and other settings of sampling (SamplingKeywords),
        num_alternatives, forced_ids, first_attribution; json_schema, json_object, grammar, regex or choice, which
        constrain the completion; attribution (a preset: "recommended", "paper", "unloosened", "grad_eclip", "knockout",
        "head_abs_no_sink" or "step_relevance"; by default the server's; None for tokens only), method, loosening,
        layers, similarity, rotary, rectify, magnitude, normalise_over, sink, gradient, target, contrast, sources,
        resolution, top_k_sources, delivery, chunk_size, tokens; see GenerateKeywords.
        """
        return self._events(calls.generate(prompt, keywords), on_event)

    def explain(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Explanation:
        """Generate a completion and return it with its attribution.

        `on_event` is called with every event. Other keywords as in `generate`.
        """
        return Explanation.from_events(self._events(calls.generate(prompt, keywords), on_event))

    def attribute_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Generator[Event, None, None]:
        """Attribute a given completion (teacher-forced), and yield the same events as `generate`.

        `on_event` is called with every event, as in `generate`.
        Keywords: completion or completion_ids; messages, prompt_ids, segments; num_alternatives; and the attribution
        keywords of `generate`; see AttributeKeywords.
        """
        return self._events(calls.attribute(prompt, keywords), on_event)

    def attribute(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[AttributeKeywords],
    ) -> Explanation:
        """Attribute a given completion (teacher-forced), and return it with its attribution.

        `on_event` is called with every event. Other keywords as in `attribute_events`.
        """
        return Explanation.from_events(self._events(calls.attribute(prompt, keywords), on_event))

    def contrast(
        self, explanation: Explanation, place: Word | int, instead: str | int, **keywords: Unpack[CallKeywords]
    ) -> Attribution:
        """Return a contrastive attribution: why a token was generated instead of another one.

        Scores explain the difference of the two logits, one per prompt token. `place` is a word of the explanation
        (its first token) or a token's index in the completion; `instead` is a text (its first token), a token id, or
        "runner_up".
        """
        index, replay = contrast_keywords(explanation, place, instead)
        return attribution_row(self.attribute(**cast("AttributeKeywords", {**replay, **keywords})), index)

    def follow(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[FollowKeywords],
    ) -> Following:
        """Attribute a completion while another engine writes it.

        Append the tokens as they come, and iterate the result for the same events as those of `attribute_events`, with
        `agreement` for each chunk whose log-probabilities were compared. `on_event` is called with every event.
        Keywords: messages, prompt_ids, message_spans, segments; max_new_tokens, upstream_dtype, flush_seconds,
        num_alternatives; and the attribution keywords of `generate`; see FollowKeywords.
        """
        call = calls.follow(prompt, keywords)
        self._check_open()
        return Following(partial(self._follow, call, on_event), call)

    def follow_openai(
        self, chunks: Iterable[Any], *, choice: int = 0, **keywords: Unpack[FollowKeywords]
    ) -> Iterator[OpenAIItem]:
        """Attribute what a streaming response of the openai package says, from any compatible server.

        Yield its chunks untouched and at once, and events of the attribution beside them; exactly one of `item.chunk`
        and `item.event` is not None. See `gradellm.following.openai_chunks` for what to ask the server for.
        Keywords as in `follow`; `choice` is the index of the explained choice.
        """
        return follow_openai(self, chunks, choice, keywords)

    def evaluate_events(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> Generator[Event, None, None]:
        """Evaluate the faithfulness of attributions of a completion, and yield events.

        These are `started`, tokens, progress, items, `summary` and `finished`. `on_event` is called with every event,
        as in `generate`.
        Keywords: completion, completion_ids, labels or explanation; messages, prompt_ids, segments; max_new_tokens and
        other sampling keywords for a completion that is generated first; methods, scores, metrics, pis, samples,
        stride, offset, seed, perturb, perturb_positions, removal, raw_scores, rationale; see EvaluateKeywords.
        """
        return self._events(calls.evaluate(prompt, keywords), on_event)

    def evaluate(
        self,
        prompt: str | None = None,
        *,
        on_event: Callable[[Event], object] | None = None,
        **keywords: Unpack[EvaluateKeywords],
    ) -> EvaluationReport:
        """Evaluate the faithfulness of attributions of a completion, and return the report.

        `on_event` is called with every event. Other keywords as in `evaluate_events`.
        """
        return EvaluationReport.from_events(self._events(calls.evaluate(prompt, keywords), on_event))

    def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """Render and tokenize a prompt exactly as `generate` does. Keywords: messages, prompt_ids, segments, tools."""
        return self._unary(calls.tokenize(prompt, keywords), self._session.retry)

    def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """Return the model, the supported methods and the limits."""
        return self._unary(calls.server_info(keywords), self._session.retry)

    def with_token(self, token: str | None) -> Self:
        """Return a client for another caller that shares the connections of this one.

        It is closed with this client and need not be closed itself.
        """
        client = copy.copy(self)
        client._session = self._session.with_token(token)
        return client

    def with_metadata(self, metadata: Iterable[tuple[str, str]]) -> Self:
        """Return a client whose calls have more gRPC metadata, such as a `traceparent`; it shares the connections.

        It is closed with this client and need not be closed itself.
        """
        client = copy.copy(self)
        client._session = self._session.with_metadata(metadata)
        return client

    def close(self) -> None:
        """Cancel running calls, close the connections, and stop the local server, if any."""
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

    def _unary(self, call: calls.Call[Result], retry: Retry | None) -> Result:
        session = self._session
        attempts = session.attempts(call, retry)
        while True:
            self._check_open()
            index = session.rotation.pick()
            try:
                response = self._send(index, call.rpc, call.request, attempts)
            except grpc.RpcError as error:
                self._wait_before_retry(error, call, attempts, index)
            else:
                session.rotation.mark_up(index)
                return call.read(response)

    def _follow(
        self,
        call: calls.Call[Event | None],
        on_event: Callable[[Event], object] | None,
        stream: FollowedStream,
        messages: Callable[[], Iterator[Message]],
    ) -> Generator[Event, None, None]:
        return self._stream(call, on_event, stream, messages)

    def _events(
        self, call: calls.Call[Event | None], on_event: Callable[[Event], object] | None
    ) -> Generator[Event, None, None]:
        self._check_open()
        return self._stream(call, on_event)

    def _stream(
        self,
        call: calls.Call[Event | None],
        on_event: Callable[[Event], object] | None,
        stream: ResumableStream | None = None,
        messages: Callable[[], Iterator[Message]] | None = None,
    ) -> Generator[Event, None, None]:
        """Run the calls of a stream. `messages` makes the requests of a call that takes several."""
        session = self._session
        stream = stream or ResumableStream(call)
        attempts = session.attempts(call, session.retry)
        while True:
            self._check_open()
            index = session.rotation.pick()
            request = stream.request if messages is None else messages()
            responses = stream.running = self._send(index, call.rpc, request, attempts)
            failure: grpc.RpcError | UnavailableError | None
            try:
                while True:
                    try:
                        response = next(responses)
                    except StopIteration:
                        failure = stream.truncated(self.targets[index])
                        break
                    except grpc.RpcError as error:
                        failure = None if stream.is_over else error
                        break
                    if (event := session.accept(response, stream, attempts, index, on_event)) is not None:
                        yield event
            finally:
                responses.cancel()  # no effect on a call that has ended
            if failure is None:
                session.rotation.mark_up(index)
                return
            self._wait_before_retry(failure, call, attempts, index)

    def _send(self, index: int, rpc: str, request: Message | Iterator[Message], attempts: Attempts) -> Any:  # noqa: ANN401 (gRPC's)
        send = getattr(self._stubs[index], rpc)
        try:
            self._await_connections(index, attempts)
            return send(request, timeout=attempts.seconds_left, metadata=self._session.credentials.metadata)
        except ValueError:  # gRPC raises it for a channel that another thread has just closed
            self._check_open()
            raise

    def _await_connections(self, index: int, attempts: Attempts) -> None:
        """Before the first call to a target that resolves to many, wait for the connections of its replicas."""
        has_connections = self._session.has_connections
        if has_connections[index]:
            return
        with self._connecting:
            if has_connections[index]:
                return
            channel, is_connected = self._channels[index], threading.Event()

            def on_state(state: grpc.ChannelConnectivity) -> None:
                if state in CONNECTED:
                    is_connected.set()

            channel.subscribe(on_state, try_to_connect=True)
            is_connected.wait(attempts.at_most(CONNECT_SECONDS))
            channel.unsubscribe(on_state)
            self._closing.wait(attempts.at_most(REPLICA_SECONDS))
            has_connections[index] = True

    def _wait_before_retry(
        self, failure: grpc.RpcError | UnavailableError, call: calls.Call[Any], attempts: Attempts, index: int
    ) -> None:
        """Wait before the next attempt. Raises the error of the call if there is none."""
        self._closing.wait(self._session.next_delay(failure, call, attempts, index))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientClosedError("this client is closed; make a new one")
