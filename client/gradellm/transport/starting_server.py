"""Detects a starting server: it binds its port first and answers only after loading its model."""

from __future__ import annotations

import ipaddress
import re
import socket

__all__ = ["is_starting"]

_PROBE_SECONDS = 0.25
_NO_SETTINGS = "before receiving SETTINGS frame"  # gRPC's message for a port that accepts but does not answer
# gRPC's messages for a connection that was never established.
_NO_CONNECTION = re.compile(r"failed to connect|Failed to connect|connection attempt timed out|all backends failing")
# gRPC's messages for a port at which something else than a starting server listens.
_NOT_STARTING = re.compile(r"[Hh]andshake|http1|HTTP/1|Socket closed|[Cc]onnection reset|SSL|TLS|[Cc]ertificate")


def is_starting(target: str, message: str) -> bool:
    """Whether the server at a target listens but does not answer yet.

    gRPC's message says so only right after it waited for the server. For loopback and Unix sockets a connection is
    tried as well; other addresses are not, because an unreachable host would delay the error.

    Args:
        target: a gRPC target.
        message: gRPC's message for the failure.
    """
    if _NOT_STARTING.search(message) or not _NO_CONNECTION.search(message):
        return False
    return _NO_SETTINGS in message or _listens(target)


def _listens(target: str) -> bool:
    """Whether a Unix socket or loopback address accepts a connection."""
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        return _connects(socket.AF_UNIX, path) if hasattr(socket, "AF_UNIX") else False
    match = re.fullmatch(r"(?:ipv[46]:|dns:///)?\[?([^\]/]+?)\]?:(\d+)", target)
    if match is None:
        return False
    host, port = match[1], int(match[2])
    hosts = ["127.0.0.1", "::1"] if host == "localhost" else [host]
    for candidate in hosts:
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        if address.is_loopback and port <= 65535 and _connects(family, (candidate, port)):
            return True
    return False


def _connects(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(address)
    except (OSError, ValueError):
        return False
    return True
