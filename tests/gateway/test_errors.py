"""Errors of the SDK as HTTP statuses and OpenAI's error object."""

from __future__ import annotations

import pytest

from gradellm import (
    ClientClosedError,
    DeadlineExceededError,
    GradellmError,
    InvalidExplanationError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    StreamBrokenError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from gradellm.errors import CallCancelledError, Violation
from gradellm_gateway.errors import ModelNotFoundError, RequestTooLargeError, body_of, headers_of, status_of

# The statuses and types that OpenAI's client maps to its own exceptions, and decides by whether to retry.
EXPECTED: list[tuple[GradellmError, int, str]] = [
    (InvalidRequestError("no"), 400, "invalid_request_error"),
    (InvalidExplanationError("no"), 400, "invalid_request_error"),
    (UnauthenticatedError("no"), 401, "authentication_error"),
    (PermissionDeniedError("no"), 403, "permission_error"),
    (ModelNotFoundError("no"), 404, "invalid_request_error"),
    (RequestTooLargeError("no"), 413, "invalid_request_error"),
    (OverloadedError("no"), 429, "rate_limit_error"),
    (CallCancelledError("no"), 499, "cancelled"),
    (ServerError("no"), 500, "server_error"),
    (StreamBrokenError("no"), 500, "server_error"),
    (ClientClosedError("no"), 500, "server_error"),
    (GradellmError("no"), 500, "server_error"),
    (UnimplementedError("no"), 501, "server_error"),
    (UnavailableError("no"), 503, "server_error"),
    (DeadlineExceededError("no"), 504, "timeout"),
]


@pytest.mark.parametrize(("error", "status", "kind"), EXPECTED, ids=lambda value: type(value).__name__)
def test_status_and_type(error: GradellmError, status: int, kind: str) -> None:
    assert status_of(error) == status
    assert body_of(error)["error"]["type"] == kind
    assert body_of(error)["error"]["message"] == "no"


def test_the_first_invalid_field_is_the_param() -> None:
    error = InvalidRequestError("two are wrong", [Violation("top_p", "above 1"), Violation("stop", "empty")])
    assert body_of(error)["error"]["param"] == "top_p"
    assert body_of(InvalidRequestError("no"))["error"]["param"] is None
    assert body_of(ServerError("no"))["error"]["param"] is None


def test_the_code_is_the_servers_reason_or_the_gateways_own() -> None:
    full = OverloadedError("full")
    assert body_of(full)["error"]["code"] is None
    full.reason = "QUEUE_FULL"
    assert body_of(full)["error"]["code"] == "queue_full"
    assert body_of(ModelNotFoundError("no"))["error"]["code"] == "model_not_found"
    assert body_of(RequestTooLargeError("no"))["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (299.5, "300")])
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    """HTTP has no fractions, and 0 would be a retry at once."""
    for error in (OverloadedError("full"), UnavailableError("draining")):
        error.retry_after_seconds = seconds
        assert headers_of(error) == {"Retry-After": header}


def test_without_a_delay_there_is_no_retry_after() -> None:
    assert headers_of(UnavailableError("no server")) == {}
    assert headers_of(InvalidRequestError("no")) == {}
