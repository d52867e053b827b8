"""Every failure has its exception, with what a caller needs to act on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from gradellm import (
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
    errors,
)
from gradellm.evaluation.examples import DataError
from gradellm.evaluation.results_file import ResultsFileError

if TYPE_CHECKING:
    from client.conftest import FakeServer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, InvalidRequestError),
        (code_pb2.OUT_OF_RANGE, InvalidRequestError),
        (code_pb2.FAILED_PRECONDITION, InvalidRequestError),
        (code_pb2.RESOURCE_EXHAUSTED, OverloadedError),
        (code_pb2.UNAVAILABLE, UnavailableError),
        (code_pb2.DEADLINE_EXCEEDED, DeadlineExceededError),
        (code_pb2.CANCELLED, CallCancelledError),
        (code_pb2.UNIMPLEMENTED, UnimplementedError),
        (code_pb2.INTERNAL, ServerError),
        (code_pb2.UNKNOWN, ServerError),
        (code_pb2.DATA_LOSS, ServerError),
        (code_pb2.UNAUTHENTICATED, UnauthenticatedError),
        (code_pb2.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_every_status_has_its_exception(client: Any, fake: FakeServer, code: int, kind: type[GradellmError]) -> None:
    info = error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="gradellm")
    fake.fail(code, "the words of the server", info)
    for call in (
        lambda: list(client.generate("Once")),
        lambda: client.tokenize("Once"),
        lambda: client.explain("Once"),
    ):
        with pytest.raises(kind, match="the words of the server") as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.reason == "SOME_REASON"
        assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_violations_name_their_fields(client: Any, fake: FakeServer) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="max_new_tokens", description="is 9, at most 8 fit")
    bad.field_violations.add(field="top_p", description="must be in (0, 1]")
    fake.fail(code_pb2.INVALID_ARGUMENT, "2 fields are wrong", bad)
    with pytest.raises(InvalidRequestError) as caught:
        client.explain("Once")
    assert str(caught.value) == "max_new_tokens: is 9, at most 8 fit; top_p: must be in (0, 1]"
    assert caught.value.violations == (
        Violation("max_new_tokens", "is 9, at most 8 fit"),
        Violation("top_p", "must be in (0, 1]"),
    )
    assert isinstance(caught.value, ValueError)


def test_overload_carries_the_retry_delay(client: Any, fake: FakeServer) -> None:
    fake.overload()
    with pytest.raises(OverloadedError, match=r"8 requests wait .*try again in 1.5 s") as caught:
        client.explain("Once")
    assert (caught.value.retry_after_seconds, caught.value.reason) == (1.5, "QUEUE_FULL")


def test_a_deadline_that_is_over(client: Any, fake: FakeServer) -> None:
    fake.hold.set()
    with pytest.raises(DeadlineExceededError, match=r"timeout=0\.3") as caught:
        client.explain("Once", timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert fake.cancelled.wait(10)


def test_no_server_answers(connect: Callable[[str], Any], tmp_path: Any) -> None:
    target = f"unix:{tmp_path}/nobody.sock"
    with pytest.raises(UnavailableError, match="gradellm serve") as caught:
        connect(target).server_info()
    assert str(caught.value).startswith(f"no gradellm server answers at {target} (")


def test_a_message_too_large_is_no_overload(client: Any) -> None:
    with pytest.raises(InvalidRequestError, match="larger than max"):
        client.tokenize("x" * (5 << 20))  # the fake server has gRPC's own limit of 4 MiB


def test_garbled_details_do_not_hide_the_error(client: Any, fake: FakeServer) -> None:
    fake.fail(code_pb2.INTERNAL, "broken")
    assert fake.failure is not None
    key = fake.failure.trailing_metadata[0][0]
    fake.failure = fake.failure._replace(trailing_metadata=((key, b"\xff\xff"),))  # type: ignore[attr-defined]
    with pytest.raises(ServerError, match="broken"):
        client.tokenize("Once")


def test_the_tree_of_errors_has_every_error() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"^[├└]── (\w+) +(.+)$", errors.__doc__, re.MULTILINE))
    kinds = [each for name in errors.__all__ if isinstance(each := getattr(errors, name), type)]
    kinds = [kind for kind in [*kinds, DataError, ResultsFileError] if issubclass(kind, GradellmError)]
    assert drawn.keys() == {kind.__name__ for kind in kinds} - {"GradellmError"}
    for kind in kinds:
        builtin = {base.__name__ for base in (ValueError, TimeoutError, RuntimeError) if issubclass(kind, base)}
        assert builtin == set(re.findall(r"also a (\w+Error)", drawn.get(kind.__name__, "")))


def test_the_error_of_one_keyword_names_it() -> None:
    error = InvalidRequestError.of("top_p", "must be in (0, 1]")
    assert str(error) == "top_p: must be in (0, 1]"
    assert error.violations == (Violation("top_p", "must be in (0, 1]"),)
    assert InvalidRequestError("wrong").violations == ()
