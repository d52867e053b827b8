"""Parsing of `traceparent`."""

from __future__ import annotations

import pytest

from gradellm_server.observability.call import Call
from gradellm_server.observability.trace_context import trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent", [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"01-{TRACE}-{SPAN}-01-more"]
)
def test_a_callers_trace_is_read(traceparent: str) -> None:
    context = trace_context([("other", "x"), ("traceparent", traceparent)])
    assert context == (TRACE, SPAN)
    assert Call.start("Generate", [("traceparent", traceparent)]).trace_id == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\nforged=1",
    ],
)
def test_a_malformed_traceparent_is_ignored(traceparent: str) -> None:
    assert trace_context([("traceparent", traceparent)]) is None
    assert Call.start("Generate", [("traceparent", traceparent)]).trace_id == ""


def test_binary_metadata_is_ignored() -> None:
    assert trace_context([("traceparent", b"00")]) is None
