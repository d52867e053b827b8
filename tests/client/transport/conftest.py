"""A failed call without a network."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status


class Failure(grpc.RpcError):
    """A failed call, as gRPC raises it, with details where there are some."""

    def __init__(
        self, code: grpc.StatusCode, message: str | None = "gone", *details: Message, trailers: Any = ()
    ) -> None:
        self._code, self._message, self._trailers = code, message, trailers
        if details:
            status = status_pb2.Status(code=code.value[0], message=message or "")
            for detail in details:
                status.details.add().Pack(detail)
            self._trailers = rpc_status.to_status(status).trailing_metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._message

    def trailing_metadata(self) -> Any:
        return self._trailers
