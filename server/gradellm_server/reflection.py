"""Server reflection, version 1 beside v1alpha: newer tools ask the former alone.

grpcio-reflection has v1alpha. The messages of both have the same fields on the wire, so that its servicer answers v1,
too, and the file of v1 is that of v1alpha with the package's name replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

__all__ = ["V1ALPHA_NAME", "V1_NAME", "add_reflection"]

V1ALPHA_NAME: str = reflection.SERVICE_NAME
V1_NAME = V1ALPHA_NAME.replace("v1alpha", "v1")


def add_reflection(server: Any, service_names: Sequence[str]) -> None:  # noqa: ANN401 (a server of grpc.aio)
    """Add both versions to a server, which tell of these services and of themselves."""
    _add_file()
    names = [*service_names, V1ALPHA_NAME, V1_NAME]
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(V1_NAME, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


def _add_file() -> None:
    """Add the file of v1 to the descriptors of this process, as tools ask for it by the service's name."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    v1 = descriptor_pb2.FileDescriptorProto.FromString(alpha.SerializeToString())
    v1.name = alpha.name.replace("v1alpha", "v1")
    v1.package = alpha.package.replace("v1alpha", "v1")
    for message in v1.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in v1.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
