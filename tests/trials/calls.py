"""Generate calls by the bare stub, without the SDK."""

from __future__ import annotations

from typing import Any

import grpc

from gradellm.v1 import explainer_pb2 as pb
from support import fuzzing

CALL_SECONDS = 300.0


def generate_call(channel: grpc.Channel) -> Any:
    """The Generate method on a channel."""
    return channel.unary_stream(
        fuzzing.SERVICE + "Generate",
        request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString,
    )


def explained_request(num_tokens: int, prompt: str = "Once upon a time") -> pb.GenerateRequest:
    """A request whose tokens are explained one by one."""
    return pb.GenerateRequest(
        input=pb.Input(prompt=prompt), max_new_tokens=num_tokens, attribution=pb.AttributionOptions()
    )


def text_of(call: Any) -> str:
    """The completion's text, read to its end."""
    return "".join(event.token.text for event in call if event.HasField("token"))


def status_of(call: Any) -> str:
    """The status code that a stream ends with, once it is read to its end."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"
