"""The calls of the service without network I/O: the RPC, its request, and how its response is read.

Both clients build a `Call` before they touch the network, so that an invalid request fails before it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gradellm.models import Event, ServerInfo, TokenizedPrompt
from gradellm.wire import requests, responses
from gradellm.wire.evaluate_requests import evaluate_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from gradellm.wire.keywords import (
        AttributeKeywords,
        CallKeywords,
        EvaluateKeywords,
        FollowKeywords,
        GenerateKeywords,
        TokenizeKeywords,
    )

__all__ = ["Call", "attribute", "evaluate", "follow", "generate", "server_info", "tokenize"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One RPC, ready to be sent."""

    rpc: str
    """Its name in the service."""
    request: Message
    read: Callable[[Any], Result]
    """Converts a response proto to the SDK's dataclass."""
    timeout: float | None
    """Seconds; None for no limit."""


def generate(prompt: str | None, keywords: GenerateKeywords) -> Call[Event | None]:
    """Build the call that streams a generated completion."""
    request = requests.generate_request(prompt, keywords)
    return Call("Generate", request, responses.event, requests.deadline(keywords))


def attribute(prompt: str | None, keywords: AttributeKeywords) -> Call[Event | None]:
    """Build the call that streams the attribution of a given completion."""
    request = requests.attribute_request(prompt, keywords)
    return Call("Attribute", request, responses.event, requests.deadline(keywords))


def follow(prompt: str | None, keywords: FollowKeywords) -> Call[Event | None]:
    """Build the call that attributes a completion while another engine writes it; its request is the first message."""
    request = requests.follow_request(prompt, keywords)
    return Call("Follow", request, responses.event, requests.deadline(keywords))


def evaluate(prompt: str | None, keywords: EvaluateKeywords) -> Call[Event | None]:
    """Build the call that streams an evaluation."""
    request = evaluate_request(prompt, keywords)
    return Call("Evaluate", request, responses.event, requests.deadline(keywords))


def tokenize(prompt: str | None, keywords: TokenizeKeywords) -> Call[TokenizedPrompt]:
    """Build the call that tokenizes a prompt."""
    request = requests.tokenize_request(prompt, keywords)
    return Call("Tokenize", request, responses.tokenized_prompt, requests.deadline(keywords))


def server_info(keywords: CallKeywords) -> Call[ServerInfo]:
    """Build the call that returns the model, its methods and the limits."""
    request = requests.server_info_request(keywords)
    return Call("GetServerInfo", request, responses.server_info, requests.deadline(keywords))
