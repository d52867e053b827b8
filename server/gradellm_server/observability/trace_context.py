"""W3C Trace Context: the trace that a call belongs to, from its metadata.

Parsed without a tracing library, so that the access log has a caller's trace id also if spans are not exported.
Source: W3C Recommendation "Trace Context", section 3.2 (`traceparent`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Metadata = Sequence[tuple[str, str | bytes]]

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """The caller's trace.

    Attributes:
        trace_id: of the whole trace, 32 hexadecimal digits.
        parent_id: of the caller's span, 16 hexadecimal digits.
    """

    trace_id: str
    parent_id: str


def metadata_value(metadata: Metadata, name: str) -> str:
    """The first text under a name; empty if there is none."""
    return next((value for key, value in metadata if key == name and isinstance(value, str)), "")


def trace_context(metadata: Metadata) -> TraceContext | None:
    """The caller's trace; None if the metadata has no valid `traceparent`."""
    match = _TRACEPARENT.fullmatch(metadata_value(metadata, "traceparent"))
    if match is None:
        return None
    version, trace_id, parent_id, _, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceContext(trace_id, parent_id)
