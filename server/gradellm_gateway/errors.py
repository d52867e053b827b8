"""Maps SDK errors to HTTP statuses and OpenAI's error object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
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
    """The request names a model that is not served."""


class RequestTooLargeError(InvalidRequestError):
    """The request's body exceeds the size limit."""


# Errors of the gateway itself: status and OpenAI error code.
_GATEWAY_ERRORS: tuple[tuple[type[GradellmError], int, str], ...] = (
    (ModelNotFoundError, 404, "model_not_found"),
    (RequestTooLargeError, 413, "request_too_large"),
)


def status_of(error: GradellmError) -> int:
    """The HTTP status of an error."""
    return next((status for error_type, status, _ in (*_GATEWAY_ERRORS, *_KINDS) if isinstance(error, error_type)), 500)


def headers_of(error: GradellmError) -> dict[str, str]:
    """Retry-After, if the server said when to retry."""
    seconds = getattr(error, "retry_after_seconds", None)
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def body_of(error: GradellmError) -> dict[str, Any]:
    """OpenAI's error object for an SDK error."""
    kind = next((name for error_type, _, name in _KINDS if isinstance(error, error_type)), "server_error")
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    code = next(
        (name for error_type, _, name in _GATEWAY_ERRORS if isinstance(error, error_type)), error.reason.lower() or None
    )
    return error_object(str(error), kind, param=violations[0].field if violations else None, code=code)


def error_object(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def limit_count(path: str, value: object, limit: int, what: str) -> None:
    """Raise InvalidRequestError for a list of more than `limit`."""
    if isinstance(value, list) and len(value) > limit:
        raise InvalidRequestError.of(path, f"{len(value):,} {what}; the limit is {limit:,}: send fewer")


_SIZES = re.compile(r"message larger than max \((?P<size>\d+) vs\. (?P<limit>\d+)\)")  # gRPC's


def named_if_too_large(error: InvalidRequestError, body: Mapping[str, Any]) -> InvalidRequestError:
    """The error of a request that the server did not read, which names the largest field; any other error itself."""
    if (sizes := _SIZES.search(str(error))) is None:
        return error
    name = max(body, key=lambda name: len(json.dumps(body[name])))
    size, limit = int(sizes["size"]), int(sizes["limit"])
    return InvalidRequestError.of(
        "prompt" if name == "prompt_ids" else name[:40],
        f"makes a message of {size:,} bytes to the explanation server; its limit is {limit:,}: shorten it",
    )
