"""The calls of a client without its input and output: what is sent to which RPC, and how the answer is read.

Both clients build these and only then touch the network, so a request that is wrong fails before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from gradellm import requests, responses
from gradellm.errors import from_rpc
from gradellm.results import Event, ServerInfo, TokenizedPrompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from gradellm.errors import GradellmError

Result = TypeVar("Result")

_MAX_MESSAGE_BYTES = 64 << 20  # `started` with the tokens of a long prompt is beyond gRPC's own 4 MiB
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.lb_policy_name", "round_robin"),  # replicas share the load where a dns:/// target has several addresses
)
"""For both kinds of channel."""


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

    def failed(self, error: grpc.RpcError, target: str) -> GradellmError:
        """Return what the caller gets in place of a failed RPC's error."""
        return from_rpc(error, target=target, timeout=self.timeout)


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
