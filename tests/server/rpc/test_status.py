"""The table of errors: complete on both sides of the wire, with details that a client can act on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import gradellm_engine.errors
import gradellm_server.engine_thread
from gradellm.transport.rpc_errors import EXCEPTIONS
from gradellm_engine import EngineError, InvalidRequestError, OutOfMemoryError
from gradellm_server.engine_thread import EngineFailedError, QueueFullError, RejectedError, ShuttingDownError
from gradellm_server.rpc import status


def error_types(module: ModuleType) -> Iterator[type[Exception]]:
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == module.__name__:
            yield kind


def told(error: Exception) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    its = status.status_of(error)
    (payload,) = [value for key, value in its.trailing_metadata if key == "grpc-status-details-bin"]
    return its.code, its.details, status_pb2.Status.FromString(payload)


def retry_seconds(details: status_pb2.Status) -> float | None:
    retry: Any = error_details_pb2.RetryInfo()
    for part in details.details:
        if part.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return None


def test_every_error_of_the_engine_and_of_its_thread_has_a_row() -> None:
    bases = {EngineError, RejectedError}
    kinds = {*error_types(gradellm_engine.errors), *error_types(gradellm_server.engine_thread)} - bases
    assert {EngineFailedError, OutOfMemoryError} < kinds
    assert kinds <= set(status.TABLE)


def test_rows_of_a_special_kind_come_before_those_of_its_base() -> None:
    kinds = list(status.TABLE)
    for index, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[index + 1 :]), kind


def test_reasons_are_capitals_and_every_code_has_an_exception_of_the_client() -> None:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    for row in status.TABLE.values():
        assert row.reason == row.reason.upper()
        assert row.reason.isidentifier()
        # INTERNAL is a ServerError; everything else is told apart.
        assert codes[row.code] in EXCEPTIONS or codes[row.code] is grpc.StatusCode.INTERNAL, row


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError()], ids=repr)
def test_out_of_memory_is_no_internal_error(error: Exception) -> None:
    code, message, details = told(error)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message
    assert retry_seconds(details) is not None
    assert status.reason_of(status.status_of(error)) == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    "error", [QueueFullError("1 runs", 12.5), ShuttingDownError(12.5), EngineFailedError("has failed", 12.5)], ids=repr
)
def test_the_retry_delay_is_the_errors_own(error: Exception) -> None:
    assert retry_seconds(told(error)[2]) == 12.5


def test_a_users_mistake_names_the_field_and_asks_for_no_retry() -> None:
    code, _, details = told(InvalidRequestError("top_p", "must be at most 1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert retry_seconds(details) is None
    bad = error_details_pb2.BadRequest()
    assert any(part.Unpack(bad) for part in details.details)
    assert bad.field_violations[0].field == "top_p"


def test_what_nobody_expected_is_told_without_its_text() -> None:
    code, message, _ = told(RuntimeError("the prompt was: secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message


def test_a_long_text_is_cut_between_words() -> None:
    quoted = repr("\u2028" * 3)
    for padding in range(12):
        cut = status.shortened("x" * padding + f" {quoted}" * 100)
        assert len(cut.encode()) <= status.MAX_TEXT_BYTES + 4
        assert cut.endswith(f" {quoted} ...")
    assert status.shortened("é" * 600) == "é" * 500 + " ..."
    assert status.shortened("short") == "short"
