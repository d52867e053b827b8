"""Errors that say which field is wrong, and messages of other libraries on one line."""

from __future__ import annotations

import pytest

from gradellm_engine import InvalidRequestError, OutOfMemoryError
from gradellm_engine.errors import one_line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a plain message"), "a plain message"),
        (ValueError("the first line\nand a second"), "the first line"),
        (ValueError("\n  indented, after an empty line \n\nmore"), "indented, after an empty line"),
        (
            RuntimeError("Error(s) in loading:\n\tsize mismatch for x\n\tanother"),
            "Error(s) in loading: size mismatch for x",
        ),
        (RuntimeError("ends with a colon:"), "ends with a colon:"),
        (ValueError(), "ValueError"),
        (OSError("  \n "), "OSError"),
        (KeyError("rope_theta"), "KeyError 'rope_theta'"),
    ],
)
def test_a_message_on_one_line(error: Exception, message: str) -> None:
    """Its first line, and the second where the first announces it; the type where the message says too little."""
    assert one_line(error) == message


def test_an_invalid_request_names_its_field() -> None:
    error = InvalidRequestError("top_p", "must lie above 0")
    assert (error.field, error.description, str(error)) == ("top_p", "must lie above 0", "top_p: must lie above 0")
    assert isinstance(error, ValueError)  # callers need not import the engine's errors


def test_out_of_memory_says_what_to_do() -> None:
    assert "fewer tokens, or try again later" in one_line(OutOfMemoryError())
