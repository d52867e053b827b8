"""The calls of a client without its input and output: what is sent to which RPC, and how the answer is read.

Both clients build these and only then touch the network, so a request that is wrong fails before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from gradellm._version import __version__
from gradellm.errors import GradellmError, OverloadedError, UnavailableError, from_rpc
from gradellm.models import Event, ServerInfo, TokenizedPrompt
from gradellm.transport import addresses
from gradellm.transport.load_balancing import may_be_several
from gradellm.transport.retry import Attempts, Retry
from gradellm.wire import requests, responses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    from gradellm.transport.load_balancing import Rotation

Result = TypeVar("Result")

_MAX_MESSAGE_BYTES = 64 << 20  # `started` with the tokens of a long prompt is beyond gRPC's own 4 MiB
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.primary_user_agent", f"gradellm/{__version__}"),  # before gRPC's own, for who looks into a server's traffic
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.lb_policy_name", "round_robin"),  # replicas share the load where a dns:/// target has several addresses
    # A host that vanished says nothing: it is asked while a call is open, so that the call can go on elsewhere.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # counts where this is longer
    # A server that starts anew is found again soon, and so are names that change.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.enable_retries", 0),  # calls are tried again by `gradellm.transport.retry`
)

CONNECT_SECONDS, SETTLE_SECONDS = 1.0, 0.1
"""Before the first call to a target that may be several servers: for the first of them to be there, at most, and then
for the others. Without it gRPC would give all calls that wait for a connection to whichever is there first."""
CONNECTED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
"""States of a channel for which there is no more waiting."""


def channel_options(target: str) -> tuple[tuple[str, Any], ...]:
    """Return the options of a channel to one target, of both kinds of channel."""
    return (*CHANNEL_OPTIONS, *addresses.proxy_options(target))


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One RPC, ready to be sent."""

    rpc: str
    """Its name in the service."""
    request: Message
    read: Callable[[Any], Result]
    """From a response proto to what the caller gets."""
    timeout: float | None
    """Seconds."""

    def attempts(self, retry: Retry | None, targets: Sequence[str]) -> Attempts:
        """Return the tries that it may take."""
        has_replicas = any(map(may_be_several, targets))
        return Attempts(
            retry or Retry(attempts=1, resume_seconds=0),
            self.timeout,
            num_targets=len(targets),
            has_replicas=has_replicas,
        )

    def pause_after(
        self,
        failure: grpc.RpcError | UnavailableError,
        attempts: Attempts,
        rotation: Rotation,
        index: int,
        target: str,
    ) -> float:
        """Return how many seconds to wait before the next try; raise what the caller gets where there is none."""
        error = self.failed(failure, target, attempts.has_begun) if isinstance(failure, grpc.RpcError) else failure
        has_other = False
        is_servers = isinstance(error, UnavailableError | OverloadedError) and not error.reason.startswith("CLIENT_")
        if is_servers:  # not what one caller did wrong, or has used up
            has_other = rotation.failed(index, getattr(error, "retry_after_seconds", None))
        try:
            return attempts.pause_after(error, has_other=has_other)
        except GradellmError:
            raise error from (failure if failure is not error else None)

    def failed(self, error: grpc.RpcError, target: str, has_begun: bool) -> GradellmError:
        """Return what the caller gets in place of a failed RPC's error."""
        return from_rpc(error, target=target, timeout=self.timeout, has_begun=has_begun)


def generate(prompt: str | None, keywords: requests.GenerateKeywords) -> Call[Event | None]:
    """Ask for the events of a new completion."""
    request = requests.generate_request(prompt, keywords)
    return Call("Generate", request, responses.event, requests.deadline(keywords))


def attribute(prompt: str | None, keywords: requests.AttributeKeywords) -> Call[Event | None]:
    """Ask for the events of a given completion."""
    request = requests.attribute_request(prompt, keywords)
    return Call("Attribute", request, responses.event, requests.deadline(keywords))


def evaluate(prompt: str | None, keywords: requests.EvaluateKeywords) -> Call[Event | None]:
    """Ask for the events of an evaluation."""
    request = requests.evaluate_request(prompt, keywords)
    return Call("Evaluate", request, responses.event, requests.deadline(keywords))


def tokenize(prompt: str | None, keywords: requests.TokenizeKeywords) -> Call[TokenizedPrompt]:
    """Ask for the tokens of a prompt."""
    request = requests.tokenize_request(prompt, keywords)
    return Call("Tokenize", request, responses.tokenized_prompt, requests.deadline(keywords))


def server_info(keywords: requests.CallKeywords) -> Call[ServerInfo]:
    """Ask what is served."""
    request = requests.server_info_request(keywords)
    return Call("GetServerInfo", request, responses.server_info, requests.deadline(keywords))
