"""Clients and servers of different versions ignore unknown fields, and lose nothing else.

A proxy between a real server and the SDK simulates the newer side: it adds unknown fields to every message, at every
level of the outermost event, and events of an unknown kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest

from gradellm import Client
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PROMPT = "Once upon a time"
SERVICE = "/gradellm.v1.ExplainerService/"
# Fields 1999 (a number), 2000 (a text) and 2001 (a message with a field of its own): this contract has none so high.
NEW_FIELDS = bytes([0xF8, 0x7C, 0x2A]) + bytes([0x82, 0x7D, 3]) + b"new" + bytes([0x8A, 0x7D, 2, 0x08, 0x01])
Change = Callable[[bytes], bytes]


class Proxy(grpc.GenericRpcHandler):
    """Passes calls on, with requests and answers changed on the way."""

    def __init__(self, address: str, request: Change, answers: Callable[[bytes], list[bytes]]) -> None:
        self._channel: Any = grpc.insecure_channel(address)
        self._request, self._answers = request, answers

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = str(details.method)
        if method in (SERVICE + "Generate", SERVICE + "Attribute", SERVICE + "Evaluate"):
            return grpc.unary_stream_rpc_method_handler(self._stream(method))
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answers(self._channel.unary_unary(method)(self._request(request)))[-1]
        )

    def _stream(self, method: str) -> Callable[[bytes, Any], Iterator[bytes]]:
        def run(request: bytes, context: Any) -> Iterator[bytes]:
            for answer in self._channel.unary_stream(method)(self._request(request)):
                yield from self._answers(answer)

        return run


def newer_event(answer: bytes) -> list[bytes]:
    """An event with fields that are new, outside and in it, and before it one of a kind that is new."""
    event = pb.GenerateResponse.FromString(answer)
    kind = event.WhichOneof("event")
    if kind is not None:
        getattr(event, kind).MergeFromString(NEW_FIELDS)
    return [NEW_FIELDS, event.SerializeToString() + NEW_FIELDS]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    yield server.address
    server.close()


@pytest.fixture
def through(address: str) -> Iterator[Callable[..., str]]:
    """The address of a proxy to the server."""
    proxies = []

    def start(
        request: Change = lambda payload: payload, answers: Callable[[bytes], list[bytes]] = lambda payload: [payload]
    ) -> str:
        proxy = grpc.server(ThreadPoolExecutor(4), handlers=[Proxy(address, request, answers)])
        port = proxy.add_insecure_port("127.0.0.1:0")
        proxy.start()
        proxies.append(proxy)
        return f"127.0.0.1:{port}"

    yield start
    for proxy in proxies:
        proxy.stop(None)


def comparable(events: list[Any]) -> list[Any]:
    """Events without what differs between two runs."""
    return [
        replace(event, finished=replace(event.finished, timings=None)) if event.finished is not None else event
        for event in events
    ]


def test_a_newer_server_is_understood(address: str, through: Callable[..., str]) -> None:
    with Client(address) as direct, Client(through(answers=newer_event)) as client:
        expected = comparable(list(direct.generate(PROMPT, max_new_tokens=8, seed=1)))
        assert comparable(list(client.generate(PROMPT, max_new_tokens=8, seed=1))) == expected
        assert len(expected) == 1 + 8 + 8 + 1


def test_single_answers_of_a_newer_server_are_understood(address: str, through: Callable[..., str]) -> None:
    with Client(address) as direct, Client(through(answers=lambda payload: [payload + NEW_FIELDS])) as client:
        assert client.tokenize(PROMPT) == direct.tokenize(PROMPT)
        assert client.server_info().model == direct.server_info().model


def test_unknown_fields_of_a_newer_client_are_ignored(address: str, through: Callable[..., str]) -> None:
    """A server ignores unknown fields silently; the provenance lists the settings that it used."""
    with Client(address) as direct, Client(through(request=lambda payload: payload + NEW_FIELDS)) as client:
        expected = comparable(list(direct.generate(PROMPT, max_new_tokens=4, seed=1)))
        assert comparable(list(client.generate(PROMPT, max_new_tokens=4, seed=1))) == expected


def test_a_call_that_a_server_does_not_have_is_unimplemented(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(SERVICE + "Newer")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"")
    error: Any = failed.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_fields_are_new() -> None:
    """Else this file would test nothing."""
    fields = [number for message in pb.DESCRIPTOR.message_types_by_name.values() for number in message.fields_by_number]
    assert max(fields) < 1999
    event = pb.GenerateResponse.FromString(NEW_FIELDS)
    assert event.WhichOneof("event") is None
    assert event.ByteSize() == len(NEW_FIELDS)
