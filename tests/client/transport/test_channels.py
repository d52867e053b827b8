"""Options of channels, as a server and gRPC see them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from client.conftest import FakeServer
from gradellm import __version__
from gradellm.transport.channels import CHANNEL_OPTIONS, channel_options
from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc


def test_the_server_sees_the_clients_version(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    agents: list[str] = []

    def note(context: Any) -> None:
        agents.append(dict(context.invocation_metadata())["user-agent"])

    monkeypatch.setattr(fake, "_end", note)
    with grpc.insecure_channel(fake.target, options=channel_options(fake.target)) as channel:
        explainer_pb2_grpc.ExplainerServiceStub(channel).Tokenize(pb.TokenizeRequest())  # type: ignore[no-untyped-call]
    assert agents[0].startswith(f"gradellm/{__version__} ")


@pytest.mark.parametrize(
    ("target", "is_direct"),
    [("localhost:1", True), ("unix:/a", True), ("0.0.0.0:1", True), ("models.test:1", False), ("dns:///a.b:1", False)],
)
def test_proxies_are_disabled_on_this_machine_only(target: str, is_direct: bool) -> None:
    options = dict(channel_options(target))
    assert ("grpc.enable_http_proxy" in options) == is_direct
    assert options.get("grpc.enable_http_proxy", 0) == 0
    assert options.items() >= dict(CHANNEL_OPTIONS).items()
