"""Calls as they are sent: each fits its RPC in the contract, and is checked before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gradellm import Event, InvalidRequestError, ServerInfo, TokenizedPrompt
from gradellm.transport import calls
from gradellm.v1 import explainer_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ExplainerService"]
CALLS: dict[str, tuple[Callable[..., calls.Call[Any]], tuple[Any, ...], type]] = {
    "Generate": (calls.generate, ("Once", {"timeout": 2}), Event),
    "Attribute": (calls.attribute, ("Once", {"completion": " upon", "timeout": 2}), Event),
    "Follow": (calls.follow, ("Once", {"timeout": 2}), Event),
    "Evaluate": (calls.evaluate, ("Once", {"timeout": 2}), Event),
    "Tokenize": (calls.tokenize, ("Once", {"timeout": 2}), TokenizedPrompt),
    "GetServerInfo": (calls.server_info, ({"timeout": 2},), ServerInfo),
}


def test_every_rpc_has_its_call() -> None:
    assert CALLS.keys() == set(SERVICE.methods_by_name)


@pytest.mark.parametrize("rpc", CALLS)
def test_request_and_response_are_those_of_the_rpc(rpc: str) -> None:
    build, arguments, result = CALLS[rpc]
    call = build(*arguments)
    method = SERVICE.methods_by_name[call.rpc]
    assert call.rpc == rpc
    first = method.input_type if rpc != "Follow" else method.input_type.fields_by_name["start"].message_type
    assert call.request.DESCRIPTOR is first
    assert call.timeout == 2.0
    response = getattr(pb, method.output_type.name)()
    if result is Event:
        assert call.read(response) is None  # an event of a newer server
        response.started.prompt_text = "Once"
    assert isinstance(call.read(response), result)


@pytest.mark.parametrize("rpc", CALLS)
def test_invalid_keywords_raise_before_anything_is_sent(rpc: str) -> None:
    build, (*prompt, keywords), _ = CALLS[rpc]
    with pytest.raises(InvalidRequestError, match="timeout"):
        build(*prompt, {**keywords, "timeout": 0})
    with pytest.raises(TypeError, match="timeuot; did you mean timeout"):
        build(*prompt, {**keywords, "timeuot": 1})
    without_limit = {name: value for name, value in keywords.items() if name != "timeout"}
    assert build(*prompt, without_limit).timeout is None
