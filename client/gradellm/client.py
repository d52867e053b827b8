"""The client for ordinary code. `gradellm.aio` has its asynchronous twin; what they share is in `gradellm.calls`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import grpc

from gradellm import calls
from gradellm.errors import ClientClosedError, DeadlineExceededError, UnavailableError
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation import Explanation
from gradellm.local import LocalServer
from gradellm.security import Security
from gradellm.v1 import explainer_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from typing import Self, Unpack

    from gradellm.local import LocalServerKeywords
    from gradellm.requests import (
        AttributeKeywords,
        CallKeywords,
        EvaluateKeywords,
        GenerateKeywords,
        TokenizeKeywords,
    )
    from gradellm.results import Event, ServerInfo, TokenizedPrompt
    from gradellm.security import Tls

__all__ = ["Client"]

Result = TypeVar("Result")


class Client:
    """Talks to the explanation server at `target`: "host:port", "unix:/path" or "dns:///name:port".

    Close it after use, or use it as a context manager. It may be shared between threads. Connections are plain text
    unless `tls` says otherwise: True, or `Tls(ca=..., cert=..., key=...)` for certificates of one's own. `token` is
    what a server with `--tokens` knows its clients by; it is not sent in the open to other machines. `credentials` are
    gRPC's own, in place of `tls`.

    Every call takes the keyword `timeout`, in seconds, and raises the exceptions of `gradellm.errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._security = Security(target, credentials=credentials, tls=tls, token=token)
        self._channel = (
            grpc.insecure_channel(target, calls.CHANNEL_OPTIONS)
            if self._security.credentials is None
            else grpc.secure_channel(target, self._security.credentials, calls.CHANNEL_OPTIONS)
        )
        self._stub = explainer_pb2_grpc.ExplainerServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._closed = False
        self._server: LocalServer | None = None

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
        try:
            self.server_info(timeout=LocalServer.PROBE_SECONDS)
        except (UnavailableError, DeadlineExceededError):
            return False
        return True

    def generate(self, prompt: str | None = None, **keywords: Unpack[GenerateKeywords]) -> Generator[Event, None, None]:
        """Generate a completion: yield `started`, then tokens and their attributions as they come, then `finished`.

        The request is checked at once and sent when the first event is asked for. Leaving the loop cancels the call.

        Keywords: messages or prompt_ids in place of prompt, segments; max_new_tokens, temperature, top_k, top_p, seed,
        stop, num_alternatives, forced_ids, first_attribution; attribution ("paper", "unloosened", "grad_eclip",
        "knockout", or None for tokens alone), method, loosening, layers, similarity, rotary, rectify, magnitude,
        normalise_over, target, contrast, sources, resolution, top_k_sources, delivery, chunk_size. GenerateKeywords
        says what each means.
        """
        return self._events(calls.generate(prompt, keywords))

    def explain(self, prompt: str | None = None, **keywords: Unpack[GenerateKeywords]) -> Explanation:
        """Generate a completion and return it with its attribution, collected. Keywords as in `generate`."""
        return Explanation.from_events(self.generate(prompt, **keywords))

    def attribute_events(
        self, prompt: str | None = None, **keywords: Unpack[AttributeKeywords]
    ) -> Generator[Event, None, None]:
        """Explain a completion that exists already: the same events as `generate` for tokens that the caller gives.

        Keywords: completion or completion_ids; messages, prompt_ids, segments; num_alternatives; and those of
        attribution as in `generate`. AttributeKeywords says what each means.
        """
        return self._events(calls.attribute(prompt, keywords))

    def attribute(self, prompt: str | None = None, **keywords: Unpack[AttributeKeywords]) -> Explanation:
        """Explain a completion that exists already, collected. Keywords as in `attribute_events`."""
        return Explanation.from_events(self.attribute_events(prompt, **keywords))

    def evaluate_events(
        self, prompt: str | None = None, **keywords: Unpack[EvaluateKeywords]
    ) -> Generator[Event, None, None]:
        """Tell how faithful explanations of a completion are: `started`, tokens, progress and items, then `summary`.

        Keywords: completion, completion_ids, labels or explanation; messages, prompt_ids, segments; max_new_tokens and
        others for a completion that is generated first; methods, scores, metrics, pis, samples, stride, offset, seed,
        perturb, perturb_positions, removal, raw_scores, rationale. EvaluateKeywords says what each means.
        """
        return self._events(calls.evaluate(prompt, keywords))

    def evaluate(self, prompt: str | None = None, **keywords: Unpack[EvaluateKeywords]) -> EvaluationReport:
        """Tell how faithful explanations of a completion are, collected. Keywords as in `evaluate_events`."""
        return EvaluationReport.from_events(self.evaluate_events(prompt, **keywords))

    def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """Render and tokenise a prompt exactly as `generate` would. Keywords: messages, prompt_ids, segments."""
        return self._answer(calls.tokenize(prompt, keywords))

    def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """Ask which model is served, what can be asked of it and where the limits are."""
        return self._answer(calls.server_info(keywords))

    def close(self) -> None:
        """Cancel what is under way, close the connection, and end the server if it is this client's own."""
        self._closed = True
        self._channel.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, call: calls.Call[Result]) -> Result:
        self._check_open()
        try:
            send = getattr(self._stub, call.rpc)
            return call.read(send(call.request, timeout=call.timeout, metadata=self._security.metadata))
        except grpc.RpcError as error:
            raise call.failed(error, self.target) from error

    def _events(self, call: calls.Call[Event | None]) -> Generator[Event, None, None]:
        self._check_open()
        return self._stream(call)

    def _stream(self, call: calls.Call[Event | None]) -> Generator[Event, None, None]:
        self._check_open()
        send = getattr(self._stub, call.rpc)
        responses = send(call.request, timeout=call.timeout, metadata=self._security.metadata)
        try:
            for response in responses:
                if (event := call.read(response)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise call.failed(error, self.target) from error
        finally:
            responses.cancel()  # without effect on a call that is over

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("this client is closed; make a new one")
