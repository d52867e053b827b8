"""Headers that are passed on between caller and upstream (RFC 9110, sections 7.6.1 and 7.6.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Headers", "call_metadata", "request_headers", "response_headers"]

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, with their values, in order."""

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_OF_THIS_CONNECTION = frozenset((b"host", b"expect"))
_PASSED = (b"x-request-id", b"traceparent", b"tracestate")
_VALUE = re.compile(rb"[ -~]{1,512}")
_VIA = (b"via", b"1.1 gradellm")


def request_headers(headers: Iterable[tuple[bytes, bytes]], host: bytes, *, length: int | None = None) -> Headers:
    """Return the headers of a caller's request for the upstream at `host`.

    `length` is that of a body that was changed, which also asks for an answer that is not encoded.
    """
    passed = [(name, value) for name, value in _end_to_end(headers) if name not in _OF_THIS_CONNECTION]
    if length is not None:
        passed = [header for header in passed if header[0] not in (b"content-length", b"accept-encoding")]
        passed += [(b"content-length", b"%d" % length), (b"accept-encoding", b"identity")]
    return [(b"host", host), *passed, _VIA]


def response_headers(headers: Iterable[tuple[bytes, bytes]], *, is_changed: bool = False) -> Headers:
    """Return the headers of an upstream's response for the caller. `is_changed`: the body has another length."""
    left_out = {b"date", b"content-length"} if is_changed else {b"date"}  # the gateway's server sends a Date
    return [header for header in _end_to_end(headers) if header[0] not in left_out]


def call_metadata(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return a request's id and W3C trace context, for the metadata of calls that belong to it.

    Values that metadata cannot have are left out: other characters than printable ASCII, or more than 512.
    """
    found = ((name.lower(), value) for name, value in headers)
    return tuple(
        (name.decode(), value.decode()) for name, value in found if name in _PASSED and _VALUE.fullmatch(value)
    )


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return headers without those of one connection, also those that Connection names."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {
        option.strip().lower() for name, value in lower if name == b"connection" for option in value.split(b",")
    } - {b""}
    return [(name, value) for name, value in lower if name not in _HOP_BY_HOP and name not in named]
