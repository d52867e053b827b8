"""From an error to what the wire says of it: one table, with the details that a client can act on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradellm_engine import ComputationError, InvalidRequestError
from gradellm_server.engine_thread import QueueFullError, ShuttingDownError

DOMAIN = "gradellm"
RETRY_SECONDS = 1

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """How one kind of error is told: its gRPC code, its reason in capitals, and details beside."""

    code: int
    reason: str
    details: Callable[[Exception], list[Message]] = lambda error: []


def _violations(error: Exception) -> list[Message]:
    if not isinstance(error, InvalidRequestError):
        return []
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _retry(error: Exception) -> list[Message]:
    return [error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_SECONDS))]


TABLE: dict[type[Exception], Row] = {
    InvalidRequestError: Row(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", _violations),
    QueueFullError: Row(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", _retry),
    ShuttingDownError: Row(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", _retry),
    ComputationError: Row(code_pb2.INTERNAL, "NOT_FINITE"),
}


def status_of(error: Exception) -> grpc.Status:
    """The gRPC status of an error. What nobody expected is logged here and told without its text."""
    row = next((row for kind, row in TABLE.items() if isinstance(error, kind)), None)
    message = str(error)
    if row is None:
        logger.error("unexpected error", exc_info=error)
        row, message = (
            Row(code_pb2.INTERNAL, "INTERNAL"),
            "the server failed in a way that it did not expect; see its log",
        )
    status = status_pb2.Status(code=row.code, message=message)
    for detail in [error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN), *row.details(error)]:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)
