"""Settings of a server, which validate themselves. Imports nothing heavy: checked before torch is imported."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

MAX_PORT = 65535
MAX_SECONDS = 1_000_000  # gRPC has durations in milliseconds, in 32 bits


class ListenError(Exception):
    """The server cannot listen on an address, or a setting is out of its range."""


@dataclass(frozen=True)
class ServerSettings:
    """The operator's settings.

    Attributes:
        listen: host:port, or unix:/path.
        insecure: allows plain text on an address that other machines can reach.
        max_queued: limit of queued requests.
        max_queued_tokens: limit of the tokens of all queued requests, prompts and completions at their longest.
        max_message_bytes: limit of one request's size.
        tls_cert: the server's certificate, a PEM file; None for plain text.
        tls_key: its private key.
        tls_client_ca: authority that signs clients' certificates; None if clients need none.
        tokens: file of clients and their tokens; None if no token is needed.
        metrics_listen: host:port of the metrics server, in plain text; None for no metrics.
        metrics_required: whether a used metrics port is an error, or a warning.
        health_listen: host:port that serves health alone, in plain text; None for none.
        reader_timeout_seconds: how long a response may be unread before its stream is aborted.
        stall_seconds: how long one pass of the model may take before the engine counts as stalled.
        keepalive_seconds: interval of HTTP/2 keepalive pings; a client that does not reply within half of it is
            disconnected.
        connection_seconds: age at which connections are replaced, while their calls continue. On a new connection
            clients resolve the name again, and so find servers that were added.
        receive_seconds: how long a request may take to arrive, from the start of its call.
        follow_idle_seconds: how long nothing may be sent to a Follow stream.
        debug: whether channelz is served.
        default_attribution: the preset that explains a request which wants an attribution, and does not say which.
    """

    listen: str = "localhost:50051"
    insecure: bool = False
    max_queued: int = 64
    max_queued_tokens: int = 262144
    max_message_bytes: int = 4 * 2**20
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    metrics_listen: str | None = None
    metrics_required: bool = True
    health_listen: str | None = None
    reader_timeout_seconds: float = 60.0
    stall_seconds: float = 120.0
    keepalive_seconds: float = 30.0
    connection_seconds: float = 20.0
    receive_seconds: float = 60.0
    follow_idle_seconds: float = 300.0
    debug: bool = False
    default_attribution: str = "recommended"

    def __post_init__(self) -> None:
        for name in ("max_queued_tokens", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ListenError(f"{name} must be at least 1, was {getattr(self, name)}")
        for name in (
            "reader_timeout_seconds",
            "stall_seconds",
            "keepalive_seconds",
            "connection_seconds",
            "receive_seconds",
            "follow_idle_seconds",
        ):
            if not 0 < getattr(self, name) < MAX_SECONDS:
                raise ListenError(
                    f"{name} must be more than 0 and less than {MAX_SECONDS:,}, was {getattr(self, name)}"
                )
        if self.health_listen is not None:
            split_address(self.health_listen)
        if self.max_queued < 0:
            raise ListenError(f"max_queued must not be negative, was {self.max_queued}")
        if not self.listen.startswith("unix:"):
            port = self.listen.rpartition(":")[2]
            if not port.isdecimal():
                raise ListenError(f"{self.listen} has no port; give HOST:PORT, such as localhost:50051, or unix:PATH")
            if int(port) > MAX_PORT:
                raise ListenError(f"{self.listen}: port {port} is out of range; the largest is {MAX_PORT}")
        if self.metrics_listen is not None:
            split_address(self.metrics_listen)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ListenError("--tls-cert and --tls-key must be given together: a certificate and its private key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ListenError(
                "--tls-client-ca needs --tls-cert and --tls-key: without TLS there are no client certificates"
            )
        if self.tls_cert is None and not self.insecure and not is_local(self.listen):
            raise ListenError(
                f"{self.listen} can be reached from other machines and the connection would not be encrypted; "
                "give --tls-cert and --tls-key, listen on localhost, or give --insecure if you trust the network"
            )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ListenError: if it is malformed.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ListenError(f"{address} is not HOST:PORT, such as localhost:9090, with a port of at most {MAX_PORT}")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
