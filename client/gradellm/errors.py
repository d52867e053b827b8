"""The exceptions of the SDK.

GradellmError
├── InvalidRequestError      the request is refused; also a ValueError; `.violations` names the keywords
├── OverloadedError          the server has no capacity now; `.retry_after_seconds` says when to retry
├── UnavailableError         no server answers at the target, or it is starting or draining; `.retry_after_seconds`
├── DeadlineExceededError    the call took longer than `timeout`; also a TimeoutError
├── CallCancelledError       the call was cancelled by closing the client, or by the server
├── UnauthenticatedError     missing, unknown or expired token, or a certificate that is not accepted
├── PermissionDeniedError    the caller is known but may not make this call
├── StreamBrokenError        a stream broke off, and the server that answers now cannot resume it
├── UnimplementedError       the server does not implement this call
├── ServerError              the server failed
├── LocalServerError         a local server did not start; `.stderr` has its last lines
├── ClientClosedError        the client was used after it was closed; also a RuntimeError
├── InvalidExplanationError  a stored explanation, or a list of events, is malformed; also a ValueError
├── InvalidReportError       the same for an evaluation report; also a ValueError
├── DataError                unusable data set (`gradellm.evaluation.examples`); also a ValueError
└── ResultsFileError         unusable results file (`gradellm.evaluation.results_file`)

An error of a call has the gRPC error as its `__cause__`, and in `.reason` the server's machine-readable reason, if any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One invalid field of a request."""

    field: str
    """The keyword, or the path of the proto field."""
    description: str
    """What is wrong with its value, and what is allowed."""


class GradellmError(Exception):
    """Base class of all errors of this package."""

    reason: str = ""
    """The server's machine-readable reason (google.rpc.ErrorInfo), such as QUEUE_FULL; empty if there is none."""


class InvalidRequestError(GradellmError, ValueError):
    """The request is refused, by the client before it is sent, or by the server."""

    def __init__(self, message: str, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequestError:
        """Make the error for one keyword."""
        return cls(f"{field}: {description}", [Violation(field, description)])


class _RetryableError(GradellmError):
    """Base class of errors after which a retry may succeed."""

    retry_after_seconds: float | None = None
    """How long the server asks to wait before a retry; None if it does not say."""


class OverloadedError(_RetryableError):
    """The server has no capacity for the request now: its queue or its memory is full."""


class UnavailableError(_RetryableError):
    """No server answers at the target, or it is starting or draining."""

    is_starting: bool = False
    """Whether a server listens at the target but does not answer yet, probably because it is loading its model."""


class DeadlineExceededError(GradellmError, TimeoutError):
    """The call took longer than its `timeout`."""


class CallCancelledError(GradellmError):
    """The call was cancelled by closing the client or by the server, not by leaving its iterator."""


class UnauthenticatedError(GradellmError):
    """The token is missing, unknown or expired, or a certificate is not accepted.

    A server that refuses this client's certificate may close the connection without a reason, which raises
    UnavailableError.
    """


class PermissionDeniedError(GradellmError):
    """The server knows the caller but does not allow this call."""


class StreamBrokenError(GradellmError):
    """A stream broke off, and the server that answers now cannot resume it, for example with another model."""


class UnimplementedError(GradellmError):
    """The server does not implement the call: it is older than this client, or not a gradellm server."""


class ServerError(GradellmError):
    """The server failed while processing the request."""


class LocalServerError(GradellmError):
    """A local server did not start."""

    def __init__(self, message: str, *, exit_code: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """The server process's exit code, negative for a signal; None if it did not exit by itself."""
        self.stderr = stderr
        """The last lines of its standard error."""


class ClientClosedError(GradellmError, RuntimeError):
    """The client was used after it was closed."""


class InvalidExplanationError(GradellmError, ValueError):
    """Events or JSON that are not a well-formed explanation."""


class InvalidReportError(GradellmError, ValueError):
    """Events or JSON that are not a well-formed evaluation report, or a name that the report does not have."""
