"""Reflection, version 1 beside v1alpha."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gradellm_server.reflection import V1_NAME, V1ALPHA_NAME
from server.conftest import RunningServer


def ask(server: RunningServer, version: str, **request: Any) -> Any:
    call: Any = server.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return next(call(iter([reflection_pb2.ServerReflectionRequest(**request)])))


@pytest.mark.parametrize("version", [V1_NAME, V1ALPHA_NAME])
def test_both_versions_list_the_services(server: RunningServer, version: str) -> None:
    listed = {service.name for service in ask(server, version, list_services="").list_services_response.service}
    assert {"gradellm.v1.ExplainerService", "grpc.health.v1.Health", V1_NAME, V1ALPHA_NAME} <= listed
    assert V1_NAME == "grpc.reflection.v1.ServerReflection"


@pytest.mark.parametrize("symbol", ["gradellm.v1.ExplainerService", V1_NAME, V1ALPHA_NAME])
def test_every_service_has_its_file(server: RunningServer, symbol: str) -> None:
    answer = ask(server, V1_NAME, file_containing_symbol=symbol).file_descriptor_response
    files = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in answer.file_descriptor_proto]
    assert symbol in {f"{file.package}.{service.name}" for file in files for service in file.service}


def test_an_unknown_symbol_is_an_error_of_its_own(server: RunningServer) -> None:
    answer = ask(server, V1_NAME, file_containing_symbol="no.Such")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
