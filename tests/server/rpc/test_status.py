"""The status table: complete on both sides of the wire, with details that a client can act on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import gradellm_engine.errors
import gradellm_server.engine_loop.errors
from gradellm.transport.rpc_errors import EXCEPTIONS
from gradellm_engine import EngineError, InvalidRequestError, OutOfMemoryError
from gradellm_server.engine_loop.errors import EngineFailedError, QueueFullError, RejectedError, ShuttingDownError
from gradellm_server.rpc import status


def error_types(module: ModuleType) -> Iterator[type[Exception]]:
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == module.__name__:
            yield kind


def status_parts(error: Exception) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    grpc_status = status.status_of(error)
    (payload,) = [value for key, value in grpc_status.trailing_metadata if key == "grpc-status-details-bin"]
    return grpc_status.code, grpc_status.details, status_pb2.Status.FromString(payload)


def retry_seconds(details: status_pb2.Status) -> float | None:
    retry: Any = error_details_pb2.RetryInfo()
    for detail in details.details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return None


def test_every_error_of_the_engine_and_of_its_thread_has_a_row() -> None:
    bases = {EngineError, RejectedError}
    kinds = {*error_types(gradellm_engine.errors), *error_types(gradellm_server.engine_loop.errors)} - bases
    assert {EngineFailedError, OutOfMemoryError} < kinds
    assert kinds <= set(status.STATUS_BY_ERROR)


def test_subclasses_come_before_their_bases() -> None:
    kinds = list(status.STATUS_BY_ERROR)
    for index, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[index + 1 :]), kind


def test_reasons_are_capitals_and_every_code_has_an_exception_of_the_client() -> None:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    for row in status.STATUS_BY_ERROR.values():
        assert row.reason == row.reason.upper()
        assert row.reason.isidentifier()
        # INTERNAL is a ServerError; every other code has its own exception.
        assert codes[row.code] in EXCEPTIONS or codes[row.code] is grpc.StatusCode.INTERNAL, row


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError()], ids=repr)
def test_out_of_memory_is_not_an_internal_error(error: Exception) -> None:
    code, message, details = status_parts(error)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message
    assert retry_seconds(details) is not None
    assert status.reason_of(status.status_of(error)) == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    "error", [QueueFullError("1 runs", 12.5), ShuttingDownError(12.5), EngineFailedError("has failed", 12.5)], ids=repr
)
def test_the_retry_delay_is_the_errors_own(error: Exception) -> None:
    assert retry_seconds(status_parts(error)[2]) == 12.5


def test_an_invalid_request_names_the_field_and_has_no_retry_delay() -> None:
    code, _, details = status_parts(InvalidRequestError("top_p", "must be at most 1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert retry_seconds(details) is None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in details.details)
    assert bad.field_violations[0].field == "top_p"


def test_an_unexpected_error_is_sent_without_its_text() -> None:
    code, message, _ = status_parts(RuntimeError("the prompt was: secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message


def test_a_long_text_is_cut_between_words() -> None:
    quoted = repr("\u2028" * 3)
    for padding in range(12):
        cut = status.truncate("x" * padding + f" {quoted}" * 100)
        assert len(cut.encode()) <= status.MAX_TEXT_BYTES + 4
        assert cut.endswith(f" {quoted} ...")
    assert status.truncate("é" * 600) == "é" * 500 + " ..."
    assert status.truncate("short") == "short"
