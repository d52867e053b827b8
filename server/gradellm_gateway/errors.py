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


def status_of(error: GradellmError) -> int:
    """The HTTP status that stands for an error."""
    if isinstance(error, ModelNotFoundError):
        return 404
    return next((status for kind, status, _ in _KINDS if isinstance(error, kind)), 500)


def headers_of(error: GradellmError) -> dict[str, str]:
    """When to come back, where the server said so."""
    seconds = getattr(error, "retry_after_seconds", None)
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def body_of(error: GradellmError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = next((name for its, _, name in _KINDS if isinstance(error, its)), "server_error")
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    code = "model_not_found" if isinstance(error, ModelNotFoundError) else error.reason.lower() or None
    param = violations[0].field if violations else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
