"""Which exception a failed RPC becomes, and what its message says."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from client.transport.conftest import Failure
from gradellm import errors
from gradellm.transport.rpc_errors import from_rpc
from gradellm.v1 import explainer_pb2 as pb

TARGET = "models.test:50051"
Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def error(
    code: grpc.StatusCode, message: str | None = "gone", *details: Message, target: str = TARGET, **call: Any
) -> Any:
    return from_rpc(Failure(code, message, *details), **{"target": target, "timeout": None, **call})


def reason(name: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=name, domain="gradellm")


def retry_info(milliseconds: int) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(milliseconds)
    return info


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (Code.RESOURCE_EXHAUSTED, "the queue is full", errors.OverloadedError),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", errors.InvalidRequestError),
        (Code.INTERNAL, "Received RST_STREAM with error code 2", errors.UnavailableError),
        (Code.INTERNAL, "Internal error from Core", errors.UnavailableError),
        (Code.UNKNOWN, "Stream removed", errors.UnavailableError),
        (Code.INTERNAL, "Connection reset by peer", errors.UnavailableError),
        (Code.INTERNAL, "the kernel failed", errors.ServerError),
        (Code.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", errors.UnauthenticatedError),
        (Code.UNAVAILABLE, "Tls handshake failed: UNKNOWN_CA", errors.UnauthenticatedError),
        (Code.UNAVAILABLE, "Ssl handshake failed: WRONG_VERSION_NUMBER", errors.UnavailableError),
        (Code.ABORTED, "gone", errors.CallCancelledError),
        (Code.NOT_FOUND, "gone", errors.ServerError),
        (Code.ALREADY_EXISTS, None, errors.ServerError),
    ],
)
def test_the_kind_follows_from_code_and_message(
    code: grpc.StatusCode, message: str | None, kind: type[errors.GradellmError]
) -> None:
    assert type(error(code, message)) is kind


def test_a_server_that_gives_a_reason_did_not_lose_the_connection() -> None:
    """Its message may contain any words."""
    found = error(Code.INTERNAL, "RST_STREAM is in the prompt", reason("INTERNAL"))
    assert (type(found), found.reason) == (errors.ServerError, "INTERNAL")


def test_a_value_that_the_server_does_not_know_is_an_older_servers() -> None:
    """The client has its own contract's values alone. The texts are those of earlier servers and of this one."""
    for field, value, description in (
        ("attribution.preset", pb.PRESET_RECOMMENDED, "{} is not a Preset that this server knows"),
        ("attribution.sink", pb.SINK_EXCLUDE, "{} is not a value that this server knows; it knows SINK_KEEP"),
    ):
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=field, description=description.format(value))
        found = error(Code.INVALID_ARGUMENT, "1 field", bad)
        assert type(found) is errors.UnimplementedError
        name = {"attribution.preset": "preset recommended", "attribution.sink": "sink exclude"}[field]
        assert str(found).startswith(f"the server at {TARGET} is older than the {name}: upgrade the server")


def test_violations_name_the_fields() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="top_p", description="must be above 0")
    bad.field_violations.add(field="top_k", description="must be at least 0")
    found = error(Code.INVALID_ARGUMENT, "2 fields", bad)
    assert str(found) == "top_p: must be above 0; top_k: must be at least 0"
    assert found.violations == (
        errors.Violation("top_p", "must be above 0"), errors.Violation("top_k", "must be at least 0"),
    )  # fmt: skip
    assert str(error(Code.INVALID_ARGUMENT, "no")) == f"the server at {TARGET} refused the request: no"


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE])
def test_the_servers_delay_is_in_the_message_once(code: grpc.StatusCode) -> None:
    found = error(code, "full", retry_info(1250), reason("QUEUE_FULL"))
    assert found.retry_after_seconds == 1.25
    assert str(found).endswith("full; try again in 1.25 s")
    assert error(code, "full").retry_after_seconds is None
    assert "try again" not in str(error(code, "full"))


def test_delays_of_other_errors_are_passed_over() -> None:
    assert not hasattr(error(Code.INTERNAL, "broken", retry_info(1000)), "retry_after_seconds")


def test_a_connection_that_was_never_made_says_what_to_do() -> None:
    message = str(error(Code.UNAVAILABLE, "name resolution failed"))
    assert message.startswith(f"no gradellm server answers at {TARGET} (name resolution failed); check the address")
    assert "TLS" not in message
    assert "--tls" in str(error(Code.UNAVAILABLE, "Socket closed"))


def test_a_connection_that_was_lost_is_said_to_be() -> None:
    message = str(error(Code.UNAVAILABLE, "Socket closed", has_begun=True))
    assert message == (
        f"the connection to {TARGET} was lost during a call (Socket closed); the server may have stopped"
    )
    drained = str(error(Code.UNAVAILABLE, "draining", reason("DRAINING"), has_begun=True))
    assert drained == f"the server at {TARGET} is unavailable: draining"


def test_the_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the server itself answered: then the proxy was passed."""
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.test:3128")  # pragma: allowlist secret (made up)
    message = str(error(Code.UNAVAILABLE, "failed to connect"))
    assert "through the proxy proxy.test:3128 (environment variable http_proxy)" in message
    assert "add the host to no_proxy" in message
    assert "secret" not in message
    assert "proxy" not in str(error(Code.UNAVAILABLE, "draining", reason("DRAINING")))


def test_a_starting_server_is_said_to_be() -> None:
    silent = "failed to connect to all addresses; last error: timed out before receiving SETTINGS frame"
    found = error(Code.UNAVAILABLE, silent)
    assert found.is_starting
    assert "listens and does not answer yet" in str(found)
    assert not error(Code.UNAVAILABLE, silent, has_begun=True).is_starting
    assert not error(Code.UNAVAILABLE, silent, reason("DRAINING")).is_starting


def test_deadlines_name_the_callers_timeout() -> None:
    assert "timeout=1.5 s; raise it or reduce" in str(error(Code.DEADLINE_EXCEEDED, "", timeout=1.5))
    assert str(error(Code.DEADLINE_EXCEEDED, "late")) == f"the server at {TARGET} exceeded the deadline: late"


def test_calls_that_the_server_does_not_have() -> None:
    assert "is it an up-to-date gradellm server?" in str(error(Code.UNIMPLEMENTED, "Method not found!"))
    assert str(error(Code.UNIMPLEMENTED, "", reason("X"))) == f"the server at {TARGET} failed: no reason given"


@pytest.mark.parametrize(
    "trailers",
    [None, (("grpc-status-details-bin", b"\xff\xff"),), (("grpc-status-details-bin", b""),), (("a", "b"),)],
)
def test_malformed_details_do_not_hide_the_error(trailers: Any) -> None:
    found = from_rpc(Failure(Code.INTERNAL, "broken", trailers=trailers), target=TARGET, timeout=None)
    assert (type(found), str(found)) == (errors.ServerError, f"the server at {TARGET} failed: broken")


def test_details_of_another_call_are_not_believed() -> None:
    """A proxy may change code or message, and keep the details of the server."""
    other = Failure(Code.INTERNAL, "x", reason("QUEUE_FULL")).trailing_metadata()
    found = from_rpc(Failure(Code.UNKNOWN, "broken", trailers=other), target=TARGET, timeout=None)
    assert found.reason == ""
