"""The RPCs of ExplainerService: the request type of each, its call of the engine, and its response type."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine, FollowedRequest, InvalidRequestError, Request
from gradellm_server.rpc.events_to_wire import add_prompt_tokens
from gradellm_server.rpc.follow_from_wire import read_follow_settings
from gradellm_server.rpc.requests_from_wire import (
    read_attribution,
    read_evaluation,
    read_input,
    read_sampling,
    read_structured_output,
)
from gradellm_server.rpc.wire_enums import set_fields

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExplainerService"].full_name


def generate(request: pb.GenerateRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The engine's request for a call of Generate; `tenant` is the calling client."""
    return engine.generation_request(
        read_input(request.input, engine.prompt_limits),
        read_sampling(request, engine.generation_defaults.sampling),
        read_attribution(request.attribution) if request.HasField("attribution") else None,
        forced_ids=request.forced_ids,
        **set_fields(request, "first_attribution"),
        structured_output=read_structured_output(request),
        tenant=tenant,
    )


def attribute(request: pb.AttributeRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The engine's request for a call of Attribute; `tenant` is the calling client."""
    if request.HasField("completion") == bool(request.completion_ids):
        raise InvalidRequestError("completion", "give exactly one of completion and completion_ids")
    completion = request.completion if request.HasField("completion") else request.completion_ids
    return engine.attribution_request(
        read_input(request.input, engine.prompt_limits),
        completion,
        read_attribution(request.attribution),
        num_alternatives=request.num_alternatives,
        tenant=tenant,
    )


def follow(request: pb.FollowStart, engine: Engine, *, tenant: str | None = None) -> FollowedRequest:
    """The engine's request for a call of Follow; `tenant` is the calling client."""
    return engine.follow_request(
        read_input(request.input, engine.prompt_limits),
        read_attribution(request.attribution),
        read_follow_settings(request),
        tenant=tenant,
    )


def evaluate(request: pb.EvaluateRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The engine's request for a call of Evaluate; `tenant` is the calling client."""
    is_set = {
        "completion": request.HasField("completion"),
        "completion_ids": bool(request.completion_ids),
        "labels": bool(request.labels),
        "generation": request.HasField("generation"),
    }
    if sum(is_set.values()) > 1:
        fields = ", ".join(name for name, value in is_set.items() if value)
        raise InvalidRequestError("completion", f"give at most one of {', '.join(is_set)}; these are set: {fields}")
    completion = request.completion if is_set["completion"] else request.completion_ids or None
    return engine.evaluation_request(
        read_input(request.input, engine.prompt_limits),
        read_evaluation(request.evaluation, request.labels),
        completion,
        read_sampling(request.generation),
        tenant=tenant,
    )


def tokenize(request: pb.TokenizeRequest, engine: Engine) -> pb.TokenizeResponse:
    """The response of a Tokenize call."""
    prompt = engine.tokenize(read_input(request.input, engine.prompt_limits))
    response = pb.TokenizeResponse(prompt_text=prompt.text, unplaced_messages=prompt.unplaced_messages)
    add_prompt_tokens(response.tokens, prompt)
    return response


def num_tokens(response: pb.TokenizeResponse) -> int:
    """Tokens of a Tokenize call, which are charged to its client."""
    return len(response.tokens)


# Request type, call of the engine, response type; for Follow, which takes a stream of requests, `rpc/follow.py`.
STREAMING_RPCS: dict[str, tuple[type[Message], Callable[..., Request], type[Message]]] = {
    "Generate": (pb.GenerateRequest, generate, pb.GenerateResponse),
    "Attribute": (pb.AttributeRequest, attribute, pb.AttributeResponse),
    "Evaluate": (pb.EvaluateRequest, evaluate, pb.EvaluateResponse),
}
UNARY_RPCS: dict[str, tuple[type[Message], Callable[..., Message]]] = {
    "Tokenize": (pb.TokenizeRequest, tokenize),
}
