"""Tracebacks in the log: the stack of every cause, and messages of no exception that may quote a prompt."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest

from gradellm_server.observability.logging_setup import JsonFormatter, TextFormatter
from gradellm_server.observability.redacted_tracebacks import MAX_MESSAGE_CHARACTERS, redact

MARKER = "XyzzyMarker"


def raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_tracebacks_have_the_stack_and_no_message(formatter: type[logging.Formatter]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        try:
            raise KeyError(MARKER)
        except KeyError as error:
            error.add_note(MARKER)
            raise ValueError(f"{MARKER} cannot be tokenised") from error
    except ValueError:
        logger.exception("a pass failed")
    logger.error("memory", exc_info=RuntimeError("CUDA out of memory"))
    output = stream.getvalue()
    assert MARKER not in output
    assert "builtins.ValueError" in output
    assert "builtins.KeyError" in output
    assert "test_redacted_tracebacks.py" in output
    assert "CUDA out of memory" in output
    if formatter is JsonFormatter:
        assert [json.loads(line)["level"] for line in output.splitlines()] == ["error", "error"]


def test_causes_come_first() -> None:
    """As in Python's own tracebacks, for `from` and for an exception in an `except` block."""

    def explicit() -> None:
        try:
            fail(KeyError(MARKER))
        except KeyError as error:
            raise ValueError(MARKER) from error

    def implicit() -> None:
        try:
            fail(KeyError(MARKER))
        except KeyError:
            fail(ValueError(MARKER))

    for act in (explicit, implicit):
        first, second = redact(raised(act)).split("\nwhich led to:\n")
        assert first.endswith("builtins.KeyError")
        assert second.endswith("builtins.ValueError")
        assert f"in {act.__name__}" in second


def test_a_suppressed_context_is_left_out() -> None:
    def act() -> None:
        try:
            fail(KeyError(MARKER))
        except KeyError:
            raise ValueError(MARKER) from None

    assert "KeyError" not in redact(raised(act))


def test_causes_in_a_circle_end() -> None:
    first, second = ValueError(MARKER), KeyError(MARKER)
    first.__cause__, second.__cause__ = second, first
    assert redact(first) == "builtins.KeyError\nwhich led to:\nbuiltins.ValueError"


@pytest.mark.parametrize("error", [OSError("disk full"), MemoryError("disk full"), RuntimeError("disk full")])
def test_messages_about_the_machine_are_kept(error: Exception) -> None:
    assert redact(error) == f"builtins.{type(error).__name__}: disk full"


def test_a_long_message_is_cut() -> None:
    assert redact(RuntimeError("x" * 10_000)) == "builtins.RuntimeError: " + "x" * MAX_MESSAGE_CHARACTERS
