"""What can go wrong, as one tree of exceptions.

GradellmError
├── InvalidRequestError      the request cannot be served as it is; also a ValueError; `.violations` says which keywords
├── OverloadedError          the server has no room now; `.retry_after_seconds` says when to come back
├── UnavailableError         nobody answers at the target, or the server is draining; `.retry_after_seconds`
├── DeadlineExceededError    `timeout` seconds were over; also a TimeoutError
├── CallCancelledError       the call was cancelled elsewhere: by closing the client, or by the server
├── UnauthenticatedError     the server knows no such caller: a missing, unknown or expired token, or a certificate
├── PermissionDeniedError    the server knows the caller, and does not allow it this call
├── StreamBrokenError        a stream broke off, and the server that answers now cannot go on with it
├── UnimplementedError       the server at the target does not know this call
├── ServerError              the server failed
├── LocalServerError         a server of one's own did not start; `.stderr` has its last lines
├── ClientClosedError        the client was used after it was closed; also a RuntimeError
├── InvalidExplanationError  a stored explanation, or a list of events, is not well formed; also a ValueError
├── InvalidReportError       the same of an evaluation's report; also a ValueError
├── DataError                a data set cannot be used (`gradellm.evaluation.datasets`); also a ValueError
└── ResultsFileError         a file of results cannot be used (`gradellm.evaluation.results_file`)

An error that came over the wire has the gRPC error as its `__cause__`, and the server's own `.reason` if it gave one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradellm.transport.addresses import proxy_of
from gradellm.transport.starting_server import is_starting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

__all__ = [
    "CallCancelledError",
    "ClientClosedError",
    "DeadlineExceededError",
    "GradellmError",
    "InvalidExplanationError",
    "InvalidReportError",
    "InvalidRequestError",
    "LocalServerError",
    "OverloadedError",
    "PermissionDeniedError",
    "ServerError",
    "StreamBrokenError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "from_rpc",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request."""

    field: str
    """The keyword, or the path of the proto field."""
    description: str
    """What is wrong with it, and what would be right."""


class GradellmError(Exception):
    """Base of all errors that this package raises."""

    reason: str = ""
    """The server's machine-readable reason (google.rpc.ErrorInfo), such as QUEUE_FULL; empty where there is none."""


class InvalidRequestError(GradellmError, ValueError):
    """The request cannot be served as it is. Found here before it was sent, or by the server."""

    def __init__(self, message: str, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequestError:
        """Make the error for one keyword."""
        return cls(f"{field}: {description}", [Violation(field, description)])


class _RetryableError(GradellmError):
    retry_after_seconds: float | None = None
    """How long the server asks to wait before the next try; None where it did not say."""


class OverloadedError(_RetryableError):
    """The server has no room for the request now: its queue or its memory is full."""


class UnavailableError(_RetryableError):
    """Nobody answers at the target, or the server is starting or going down."""

    is_starting: bool = False
    """Whether a server listens there, and does not answer yet: it is likely to be loading its model."""


class DeadlineExceededError(GradellmError, TimeoutError):
    """The call took longer than its `timeout`."""


class CallCancelledError(GradellmError):
    """The call was cancelled, though not by leaving its iterator."""


class UnauthenticatedError(GradellmError):
    """The server does not know who calls: the token is missing, unknown or has expired.

    Or a certificate is not accepted, as far as this side can tell. A server that refuses this client's certificate may
    just hang up, which is an UnavailableError.
    """


class PermissionDeniedError(GradellmError):
    """The server knows who calls, and does not allow them this call."""


class StreamBrokenError(GradellmError):
    """A stream broke off, and the server that answers now cannot go on with it: it hosts another model."""


class UnimplementedError(GradellmError):
    """The server does not know the call: it is older than this client, or no gradellm server."""


class ServerError(GradellmError):
    """The server failed while it worked on the request."""


class LocalServerError(GradellmError):
    """A server for one's own use did not start."""

    def __init__(self, message: str, *, exit_code: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """The child's exit code, below 0 for a signal; None where it did not end by itself."""
        self.stderr = stderr
        """The last lines that the child wrote."""


class ClientClosedError(GradellmError, RuntimeError):
    """The client was used after it was closed."""


class InvalidExplanationError(GradellmError, ValueError):
    """Events or JSON that do not make an explanation."""


class InvalidReportError(GradellmError, ValueError):
    """Events or JSON that do not make a report of an evaluation, or a name that is not in it."""


_HUNG_UP = "Socket closed"  # in gRPC's words, where a handshake was refused; and in other cases, too

_TORN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)  # also how gRPC may see a connection that is cut off
_TORN_WORDS = r"RST_STREAM|Stream removed|GOAWAY|[Cc]onnection reset|Transport closed"

_BY_CODE: dict[grpc.StatusCode, type[GradellmError]] = {
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
    """Make the exception that stands for a failed RPC, of either kind of channel. The caller chains `error` to it."""
    code: grpc.StatusCode = error.code()
    said: str = error.details() or ""
    details = _Details(error)
    kind = _BY_CODE.get(code, ServerError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in said:
        kind = InvalidRequestError  # gRPC's own size limit: a later try fails as well, so it is no overload
    if code in _TORN and not details.reason and re.search(_TORN_WORDS, said):
        kind = UnavailableError
    if code is grpc.StatusCode.UNAVAILABLE and re.search(r"(Tls|Ssl) handshake failed.*(CERTIFICATE|UNKNOWN_CA)", said):
        kind = UnauthenticatedError  # a later try fails as well

    result: GradellmError
    if kind is UnavailableError and not details.reason and not has_begun and is_starting(target, said):
        result = UnavailableError(
            f"the server at {target} listens and does not answer yet: it is likely to be loading its model (its log "
            "says how far it is), or it is no gradellm server"
        )
        result.is_starting = True
    elif issubclass(kind, InvalidRequestError):
        found = "; ".join(f"{v.field}: {v.description}" for v in details.violations)
        result = InvalidRequestError(found or f"the server at {target} refused the request: {said}", details.violations)
    else:
        result = kind(_message(kind, said, target, timeout, by_server=bool(details.reason), has_begun=has_begun))
    if isinstance(result, _RetryableError):
        result.retry_after_seconds = details.retry_after_seconds
        if details.retry_after_seconds is not None:
            result.args = (f"{result}; try again in {details.retry_after_seconds:g} s",)
    result.reason = details.reason
    return result


def _message(
    kind: type[GradellmError], said: str, target: str, timeout: float | None, *, by_server: bool, has_begun: bool
) -> str:
    proxy = None if by_server else proxy_of(target)
    if proxy is not None:
        target = f"{target} through {proxy}"
    if kind is UnavailableError and not by_server and has_begun:
        return f"the connection to {target} was lost in the midst of a call ({said}); the server may have been ended"
    if kind is UnavailableError and not by_server:
        return (
            f"no gradellm server answers at {target} ({said}); "
            "check the address, or start a server with `gradellm serve` or Client.local()"
            + ("; to reach it without the proxy, name its host in no_proxy" if proxy is not None else "")
            + ("; or it speaks TLS alone (tls=, --tls), or asks for a certificate" if _HUNG_UP in said else "")
        )
    if kind is UnauthenticatedError and not by_server:
        return (
            f"the server at {target} and this client do not accept each other's certificates: {said}; where the "
            "server's is signed by an authority of your own, or by itself, say by which (tls=Tls(ca=...), --tls-ca)"
        )
    if kind is DeadlineExceededError and timeout is not None:
        return f"the server at {target} was not done within timeout={timeout:g} s; allow it more, or ask for less"
    if kind is UnimplementedError and not by_server:
        return f"the server at {target} does not know this call ({said}); is it a gradellm server, and up to date?"
    what = {
        OverloadedError: "does not take this now",
        UnavailableError: "is unavailable",
        UnauthenticatedError: "does not let this client in",
        PermissionDeniedError: "does not allow this",
        CallCancelledError: "lost the call: it was cancelled",
        DeadlineExceededError: "ran out of time",
    }.get(kind, "failed")
    return f"the server at {target} {what}: {said or 'it gave no reason'}"


class _Details:
    """The parts of google.rpc.Status that a failed call carries."""

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
    except Exception:  # a proxy's garbled trailers must not hide the error that they belong to
        return None


_M = TypeVar("_M", bound="Message")


def _unpacked(status: status_pb2.Status | None, message: _M) -> _M | None:
    return next((message for part in status.details if part.Unpack(message)), None) if status else None
