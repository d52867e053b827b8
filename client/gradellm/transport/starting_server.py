"""Whether a server that does not answer is there all the same: it takes its port first, and then loads its model."""

from __future__ import annotations

import ipaddress
import re
import socket

__all__ = ["is_starting"]

_SECONDS = 0.25
_SILENCE = "before receiving SETTINGS frame"  # gRPC's words where a port takes a connection and says nothing
# gRPC's words where no connection came about: where one was cut off, its server had answered before.
_NO_CONNECTION = re.compile(r"failed to connect|Failed to connect|connection attempt timed out|all backends failing")
# And where something else than a server that starts is behind the port.
_OTHERS = re.compile(r"[Hh]andshake|http1|HTTP/1|Socket closed|[Cc]onnection reset|SSL|TLS|[Cc]ertificate")


def is_starting(target: str, said: str) -> bool:
    """Whether the server at a target listens and does not speak yet.

    gRPC says so only where it has just waited for it. Of this machine's own addresses, a connection tells at once;
    others are not tried: that could take as long as a name or a host that is not there.

    Args:
        target: as gRPC takes it.
        said: gRPC's words for the failure.
    """
    if _OTHERS.search(said) or not _NO_CONNECTION.search(said):
        return False
    return _SILENCE in said or _listens(target)


def _listens(target: str) -> bool:
    """Whether a connection to a socket or loopback address of this machine is taken."""
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        return _connects(socket.AF_UNIX, path) if hasattr(socket, "AF_UNIX") else False
    match = re.fullmatch(r"(?:ipv[46]:|dns:///)?\[?([^\]/]+?)\]?:(\d+)", target)
    if match is None:
        return False
    host, port = match[1], int(match[2])
    hosts = ["127.0.0.1", "::1"] if host == "localhost" else [host]
    for one in hosts:
        try:
            address = ipaddress.ip_address(one)
        except ValueError:
            continue
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        if address.is_loopback and port <= 65535 and _connects(family, (one, port)):
            return True
    return False


def _connects(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_SECONDS)
            probe.connect(address)
    except (OSError, ValueError):
        return False
    return True
