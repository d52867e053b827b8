"""From failed RPCs to the exceptions of `gradellm.errors`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradellm.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GradellmError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)
from gradellm.transport.addresses import proxy_of
from gradellm.transport.starting_server import is_starting
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.responses import enum_names

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["EXCEPTIONS", "from_rpc"]

_SOCKET_CLOSED = "Socket closed"  # gRPC's message for a refused TLS handshake, and for other failures

# gRPC also reports a lost connection by one of these codes, with one of these messages. The last is grpc.aio's where a
# message could not be sent: it then drops the server's status, which another call tells.
_LOST_CONNECTION_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
_LOST_CONNECTION = r"RST_STREAM|Stream removed|GOAWAY|[Cc]onnection reset|Transport closed|Internal error from Core"

EXCEPTIONS: dict[grpc.StatusCode, type[GradellmError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.ABORTED: CallCancelledError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}  # every other code is a ServerError


def from_rpc(error: grpc.RpcError, *, target: str, timeout: float | None, has_begun: bool = False) -> GradellmError:
    """Return the exception for a failed RPC of a synchronous or asyncio channel. The caller chains `error` to it.

    `has_begun` says whether the stream had delivered events before it failed.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or ""
    details = _Details(error)
    kind = EXCEPTIONS.get(code, ServerError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:
        kind = InvalidRequestError  # gRPC's message size limit, which a retry would meet again
    if code in _LOST_CONNECTION_CODES and not details.reason and re.search(_LOST_CONNECTION, message):
        kind = UnavailableError
    if code is grpc.StatusCode.UNAVAILABLE and re.search(
        r"(Tls|Ssl) handshake failed.*(CERTIFICATE|UNKNOWN_CA)", message
    ):
        kind = UnauthenticatedError  # a retry would fail again

    result: GradellmError
    if kind is UnavailableError and not details.reason and not has_begun and is_starting(target, message):
        result = UnavailableError(
            f"the server at {target} listens and does not answer yet: it is probably loading its model (its log shows "
            "the progress), or it is not a gradellm server"
        )
        result.is_starting = True
    elif older := _older_server(details.violations, target):
        result = UnimplementedError(older)
    elif issubclass(kind, InvalidRequestError):
        violations = "; ".join(f"{v.field}: {v.description}" for v in details.violations)
        result = InvalidRequestError(
            violations or f"the server at {target} refused the request: {message}", details.violations
        )
    else:
        result = kind(_message(kind, message, target, timeout, by_server=bool(details.reason), has_begun=has_begun))
    if isinstance(result, OverloadedError | UnavailableError):
        result.retry_after_seconds = details.retry_after_seconds
        if details.retry_after_seconds is not None:
            result.args = (f"{result}; try again in {details.retry_after_seconds:g} s",)
    result.reason = details.reason
    return result


def _message(
    kind: type[GradellmError], details: str, target: str, timeout: float | None, *, by_server: bool, has_begun: bool
) -> str:
    proxy = None if by_server else proxy_of(target)
    if proxy is not None:
        target = f"{target} through {proxy}"
    if kind is UnavailableError and not by_server and has_begun:
        return f"the connection to {target} was lost during a call ({details}); the server may have stopped"
    if kind is UnavailableError and not by_server:
        return (
            f"no gradellm server answers at {target} ({details}); "
            "check the address, or start a server with `gradellm serve` or Client.local()"
            + ("; to bypass the proxy, add the host to no_proxy" if proxy is not None else "")
            + (
                "; or the server requires TLS (tls=, --tls) or a client certificate"
                if _SOCKET_CLOSED in details
                else ""
            )
        )
    if kind is UnauthenticatedError and not by_server:
        return (
            f"the TLS certificate of the server at {target}, or of this client, is not accepted: {details}; for a "
            "private or self-signed authority name its certificate (tls=Tls(ca=...), --tls-ca)"
        )
    if kind is DeadlineExceededError and timeout is not None and not by_server:
        return f"the server at {target} did not finish within timeout={timeout:g} s; raise it or reduce the request"
    if kind is UnimplementedError and not by_server:
        return f"the server at {target} does not implement this call ({details}); is it an up-to-date gradellm server?"
    what = {
        OverloadedError: "has no capacity for this request now",
        UnavailableError: "is unavailable",
        UnauthenticatedError: "does not accept this client",
        PermissionDeniedError: "does not allow this call",
        CallCancelledError: "cancelled the call",
        DeadlineExceededError: "exceeded the deadline",
    }.get(kind, "failed")
    return f"the server at {target} {what}: {details or 'no reason given'}"


def _older_server(violations: tuple[Violation, ...], target: str) -> str:
    """Return the message for a server that does not know an enum's value; empty for other errors.

    This client sends only values of its own contract, so that such a server is older.
    """
    for violation in violations:
        number = re.match(r"(\d+) is not an? \w+ that this server knows", violation.description)
        field: Any = pb.AttributionOptions.DESCRIPTOR.fields_by_name.get(violation.field.removeprefix("attribution."))
        if number and field is not None and field.enum_type is not None:
            value = enum_names(field.enum_type).get(int(number[1]), number[1])
            return (
                f"the server at {target} is older than the {field.name} {value}: upgrade the server, or choose another "
                f"{field.name}"
            )
    return ""


class _Details:
    """The details of a google.rpc.Status: violations, retry delay and reason."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.violations: tuple[Violation, ...] = ()
        self.retry_after_seconds: float | None = None
        self.reason = ""
        status = _status(error)
        bad_request = _unpacked(status, error_details_pb2.BadRequest())
        if bad_request is not None:
            self.violations = tuple(Violation(v.field, v.description) for v in bad_request.field_violations)
        retry = _unpacked(status, error_details_pb2.RetryInfo())
        if retry is not None:
            self.retry_after_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        info = _unpacked(status, error_details_pb2.ErrorInfo())
        if info is not None:
            self.reason = info.reason


def _status(error: grpc.RpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)  # type: ignore[arg-type]  # RpcErrors of calls are Calls, aio's too
    except Exception:  # malformed trailers of a proxy must not hide the error itself
        return None


_M = TypeVar("_M", bound="Message")


def _unpacked(status: status_pb2.Status | None, message: _M) -> _M | None:
    return next((message for part in status.details if part.Unpack(message)), None) if status else None
