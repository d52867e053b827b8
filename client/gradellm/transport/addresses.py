"""Parses gRPC targets: whether one is on this machine, and which HTTP proxy of the environment gRPC uses for it.

gRPC uses the first of `grpc_proxy`, `https_proxy` and `http_proxy` that is set for every call, unless `no_grpc_proxy`
or `no_proxy` names the host. That includes calls to localhost, whose tokens and prompts would be sent to the proxy
unencrypted. So channels to this machine disable proxies (`proxy_options`), and errors of other targets name the proxy.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Proxy", "hosts_of", "is_local", "is_on_this_machine", "proxy_of", "proxy_options"]

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # those that gRPC reads, in its order; lower case only
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


class Proxy(NamedTuple):
    """A proxy of the environment."""

    address: str
    """Host and port, without user and password."""
    variable: str
    """The environment variable that names it."""

    def __str__(self) -> str:
        """Return the description that error messages use."""
        return f"the proxy {self.address} (environment variable {self.variable})"


def is_local(target: str) -> bool:
    """Whether traffic to a gRPC target stays on this machine: a Unix socket or a loopback address."""
    return target.startswith(("unix:", "unix-abstract:")) or all(map(_is_loopback, hosts_of(target)))


def hosts_of(target: str) -> list[str]:
    """Return the hosts of a gRPC target, without ports and brackets; none for a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return []
    addresses = re.sub(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:)", "", target)
    return [_host_of(address) for address in addresses.split(",")]


def _host_of(address: str) -> str:
    bracketed = re.fullmatch(r"\[(.*)\](:\d+)?", address)
    if bracketed:
        return bracketed[1]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.removesuffix(".").lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def proxy_options(target: str) -> tuple[tuple[str, Any], ...]:
    """Return the channel options that disable proxies for a target on this machine; none for other targets."""
    return (("grpc.enable_http_proxy", 0),) if is_on_this_machine(target) else ()


def is_on_this_machine(target: str) -> bool:
    """Whether a gRPC target, or one of the addresses that it lists, is this machine.

    Includes 0.0.0.0 and *.localhost, which `is_local` excludes: it decides where a token may be sent unencrypted, and
    these names depend on the system's resolver.
    """
    return is_local(target) or any(map(_is_this_host, hosts_of(target)))


def _is_this_host(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return is_local(host) or host.rstrip(".").lower().endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def proxy_of(target: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy that gRPC uses for a target; None for a direct connection."""
    variable = next((name for name in _VARIABLES if name in environment), None)
    if variable is None or is_on_this_machine(target):
        return None
    try:
        url = urllib.parse.urlsplit(environment[variable])
        host, port = url.hostname, url.port
    except ValueError:
        return None
    if url.scheme != "http" or not host:  # gRPC supports HTTP proxies only, and connects directly otherwise
        return None
    exceptions = next((environment[name] for name in _EXCEPTIONS if name in environment), "")
    if any(_is_included(host, entry.strip()) for host in hosts_of(target) for entry in exceptions.split(",")):
        return None
    shown = f"[{host}]" if ":" in host else host
    return Proxy(shown if port is None else f"{shown}:{port}", variable)


def _is_included(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy, a domain suffix or a network, matches a host."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.removeprefix(".").lower())
