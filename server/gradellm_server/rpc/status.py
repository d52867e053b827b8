"""The gRPC status of each error: code, reason, and the details that a client can act on, in one table."""

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
from gradellm_server.auth.quota import TooManyStreamsError, TooManyTokensError
from gradellm_server.auth.tokens import MethodNotAllowedError, UnknownClientError
from gradellm_server.engine_loop.errors import (
    EngineFailedError,
    FollowIdleError,
    QueueFullError,
    ReadingFailedError,
    ShuttingDownError,
    SlowConsumerError,
)

DOMAIN = "gradellm"
RETRY_SECONDS = 1.0  # default delay of errors that do not estimate one
MAX_TEXT_BYTES = 1000

logger = logging.getLogger(__name__)


class StatusMapping(NamedTuple):
    """The status of one kind of error: gRPC code, reason (in capitals), and further details."""

    code: int
    reason: str
    details: Callable[[Exception], list[Message]] = lambda error: []


def _violations(error: Exception) -> list[Message]:
    if not isinstance(error, InvalidRequestError):
        return []
    description = truncate(error.description)
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _retry(error: Exception) -> list[Message]:
    """The delay before a retry; nothing if a retry would fail as well."""
    seconds: float | None = getattr(error, "retry_seconds", RETRY_SECONDS)
    if seconds is None:
        return []
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(math.ceil(seconds * 1000))  # rounded up: not before there is room
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


STATUS_BY_ERROR: dict[type[Exception], StatusMapping] = {
    InvalidRequestError: StatusMapping(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", _violations),
    QueueFullError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", _retry),
    BusyError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "BUSY", _retry),
    OutOfMemoryError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _retry),
    MemoryError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", _retry),
    ShuttingDownError: StatusMapping(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", _retry),
    EngineFailedError: StatusMapping(code_pb2.UNAVAILABLE, "ENGINE_FAILED", _retry),
    GroupLostError: StatusMapping(code_pb2.UNAVAILABLE, "ENGINE_FAILED", _retry),
    ReadingFailedError: StatusMapping(code_pb2.INVALID_ARGUMENT, "TOKENIZER_FAILED"),
    TokenizerError: StatusMapping(code_pb2.INTERNAL, "TOKENIZER_FAILED"),  # on tokens that the model chose
    FollowIdleError: StatusMapping(code_pb2.DEADLINE_EXCEEDED, "NOTHING_SENT"),
    SlowConsumerError: StatusMapping(code_pb2.ABORTED, "SLOW_READER"),
    UnsupportedModelError: StatusMapping(code_pb2.FAILED_PRECONDITION, "MODEL_NOT_SUPPORTED"),
    ModelLoadError: StatusMapping(code_pb2.FAILED_PRECONDITION, "MODEL_NOT_LOADED"),
    UnknownClientError: StatusMapping(code_pb2.UNAUTHENTICATED, "TOKEN_NOT_ACCEPTED"),
    MethodNotAllowedError: StatusMapping(code_pb2.PERMISSION_DENIED, "METHOD_NOT_ALLOWED"),
    TooManyStreamsError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "CLIENT_STREAMS", _retry),
    TooManyTokensError: StatusMapping(code_pb2.RESOURCE_EXHAUSTED, "CLIENT_TOKENS_PER_MINUTE", _retry),
    ComputationError: StatusMapping(code_pb2.INTERNAL, "NOT_FINITE"),  # of the model, not of the request
}


def status_of(error: Exception) -> grpc.Status:
    """The gRPC status of an error. An unexpected error is logged, and its text is not sent to the client."""
    row = next((row for kind, row in STATUS_BY_ERROR.items() if isinstance(error, kind)), None)
    message = str(error) or type(error).__name__
    if row is None:
        logger.error("Unexpected error in a call; it ends with INTERNAL", exc_info=error)
        row = StatusMapping(code_pb2.INTERNAL, "INTERNAL")
        message = "the server failed with an unexpected error; see its log"
    status = status_pb2.Status(code=row.code, message=truncate(message))
    for detail in [error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN), *row.details(error)]:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def truncate(text: str) -> str:
    """Cut a message that quotes long names or labels, so that it fits into the trailers several times."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    truncated = encoded[:MAX_TEXT_BYTES].decode(errors="ignore")
    words = truncated.rpartition(" ")[0]  # between words, and so not inside an escape sequence
    return f"{words if len(words) > len(truncated) // 2 else truncated} ..."


def reason_of(status: grpc.Status) -> str:
    """The reason in a status of this server, in capitals; empty if it has none."""
    for key, value in status.trailing_metadata or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
