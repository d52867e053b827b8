"""Whose trace a call belongs to: W3C Trace Context, from its metadata.

The W3C's recommendation says what `traceparent` looks like. Reading it needs no tracing library, so that the log can
name a caller's trace where spans are not exported.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gradellm_server.observability.metadata import Metadata, value_of

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """What a caller says.

    Attributes:
        trace_id: of the whole trace, 32 hexadecimal digits.
        parent_id: of the caller's span, 16.
    """

    trace_id: str
    parent_id: str


def trace_context(metadata: Metadata) -> TraceContext | None:
    """The caller's; None where it says none, or something that is none."""
    match = _TRACEPARENT.fullmatch(value_of(metadata, "traceparent"))
    if match is None:
        return None
    version, trace_id, parent_id, _, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceContext(trace_id, parent_id)
