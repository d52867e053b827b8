"""From an error to what the wire says of it: one table, with the details that a client can act on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradellm_engine import (
    BusyError,
    ComputationError,
    GroupLostError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
    TokenizerError,
    UnsupportedModelError,
)
from gradellm_server.auth.access import MethodNotAllowedError, UnknownClientError
from gradellm_server.auth.quota import TooManyStreamsError, TooManyTokensError
from gradellm_server.engine_thread import (
    EngineFailedError,
    QueueFullError,
    ReadingFailedError,
    ShuttingDownError,
    SlowConsumerError,
)

DOMAIN = "gradellm"
RETRY_SECONDS = 1.0  # where an error does not know better
MAX_TEXT_BYTES = 1000

logger = logging.getLogger(__name__)


class StatusMapping(NamedTuple):
    """How one kind of error is told: its gRPC code, its reason in capitals, and details beside."""

    code: int
    reason: str
    details: Callable[[Exception], list[Message]] = lambda error: []


def _violations(error: Exception) -> list[Message]:
    if not isinstance(error, InvalidRequestError):
        return []
    description = shortened(error.description)
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _retry(error: Exception) -> list[Message]:
    """When a later try may do; nothing where none will."""
    seconds: float | None = getattr(error, "retry_seconds", RETRY_SECONDS)
    if seconds is None:
        return []
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))  # never before there is room
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


TABLE: dict[type[Exception], StatusMapping] = {
    InvalidRequestError: StatusMapping(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", _violations),
    QueueFullError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", _retry),
    BusyError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "BUSY", _retry),
    OutOfMemoryError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _retry),
    MemoryError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _retry),
    ShuttingDownError: StatusMapping(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", _retry),
    EngineFailedError: StatusMapping(code_pb2.UNAVAILABLE, "ENGINE_FAILED", _retry),
    GroupLostError: StatusMapping(code_pb2.UNAVAILABLE, "ENGINE_FAILED", _retry),
    ReadingFailedError: StatusMapping(code_pb2.INVALID_ARGUMENT, "TOKENIZER_FAILED"),
    TokenizerError: StatusMapping(code_pb2.INTERNAL, "TOKENIZER_FAILED"),  # on the model's own tokens
    SlowConsumerError: StatusMapping(code_pb2.ABORTED, "SLOW_READER"),
    UnsupportedModelError: StatusMapping(code_pb2.FAILED_PRECONDITION, "MODEL_NOT_SUPPORTED"),
    ModelLoadError: StatusMapping(code_pb2.FAILED_PRECONDITION, "MODEL_NOT_LOADED"),
    UnknownClientError: StatusMapping(code_pb2.UNAUTHENTICATED, "TOKEN_NOT_ACCEPTED"),
    MethodNotAllowedError: StatusMapping(code_pb2.PERMISSION_DENIED, "METHOD_NOT_ALLOWED"),
    TooManyStreamsError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "CLIENT_STREAMS", _retry),
    TooManyTokensError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "CLIENT_TOKENS_PER_MINUTE", _retry),
    ComputationError: StatusMapping(code_pb2.INTERNAL, "NOT_FINITE"),  # the model's own fault, whatever was asked
}


def status_of(error: Exception) -> grpc.Status:
    """The gRPC status of an error. What nobody expected is logged here and told without its text."""
    row = next((row for kind, row in TABLE.items() if isinstance(error, kind)), None)
    message = str(error) or type(error).__name__
    if row is None:
        logger.error("unexpected error", exc_info=error)
        row, message = (
            StatusMapping(code_pb2.INTERNAL, "INTERNAL"),
            "the server failed in a way that it did not expect; see its log",
        )
    status = status_pb2.Status(code=row.code, message=shortened(message))
    for detail in [error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN), *row.details(error)]:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def shortened(text: str) -> str:
    """What fits into a call's trailers, several times and in their encodings: errors may quote names and labels."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    left = encoded[:MAX_TEXT_BYTES].decode(errors="ignore")
    words = left.rpartition(" ")[0]  # not in the midst of a word, nor of an escape in something quoted
    return f"{words if len(words) > len(left) // 2 else left} ..."


def reason_of(status: grpc.Status) -> str:
    """The reason that a status of ours tells, in capitals; empty where it tells none."""
    for key, value in status.trailing_metadata or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
