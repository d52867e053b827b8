"""What went wrong, as OpenAI's clients expect it."""

from __future__ import annotations

import math
from typing import Any

from gradellm import (
    CallCancelledError,
    DeadlineExceededError,
    GradellmError,
    InvalidExplanationError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)

_KINDS: tuple[tuple[type[GradellmError], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error"),
    (InvalidExplanationError, 400, "invalid_request_error"),
    (UnauthenticatedError, 401, "authentication_error"),
    (PermissionDeniedError, 403, "permission_error"),
    (OverloadedError, 429, "rate_limit_error"),
    (CallCancelledError, 499, "cancelled"),
    (UnimplementedError, 501, "server_error"),
    (UnavailableError, 503, "server_error"),
    (DeadlineExceededError, 504, "timeout"),
)


class ModelNotFoundError(InvalidRequestError):
    """The request names another model than the one that is served."""


class RequestTooLargeError(InvalidRequestError):
    """The request has more bytes than it may."""


# What HTTP has statuses of its own for, with the codes that OpenAI's error object says.
_OWN: tuple[tuple[type[GradellmError], int, str], ...] = (
    (ModelNotFoundError, 404, "model_not_found"),
    (RequestTooLargeError, 413, "request_too_large"),
)


def status_of(error: GradellmError) -> int:
    """The HTTP status that stands for an error."""
    return next((status for kind, status, _ in (*_OWN, *_KINDS) if isinstance(error, kind)), 500)


def headers_of(error: GradellmError) -> dict[str, str]:
    """When to come back, where the server said so."""
    seconds = getattr(error, "retry_after_seconds", None)
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def body_of(error: GradellmError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = next((name for its, _, name in _KINDS if isinstance(error, its)), "server_error")
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    code = next((name for its, _, name in _OWN if isinstance(error, its)), error.reason.lower() or None)
    return error_object(str(error), kind, param=violations[0].field if violations else None, code=code)


def error_object(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, of what is no error of the SDK."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
