"""How a server listens and how much it takes. Imports nothing heavy: options are checked before torch is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

MAX_PORT = 65535
MAX_SECONDS = 1_000_000  # of what gRPC counts in milliseconds, in 32 bits


class ListenError(Exception):
    """The address cannot be listened on."""


@dataclass(frozen=True)
class ServerSettings:
    """What an operator decides.

    Attributes:
        listen: host:port, or unix:/path.
        insecure: allows plain text on an address that others can reach.
        max_queued: requests that may wait.
        max_queued_tokens: tokens of all requests that wait, prompts and completions at their longest.
        max_message_bytes: bytes of one request.
        tls_cert: the server's certificate, a PEM file; None for plain text.
        tls_key: its private key.
        tls_client_ca: who signs the certificates that clients need; None where they need none.
        tokens: the file of clients and their tokens; None where everybody may call.
        metrics_listen: host:port where Prometheus scrapes, in plain text; None for no metrics.
        metrics_required: whether it is an error that the port is taken, or a warning.
        health_listen: host:port where health alone is told, in plain text; None for nowhere but `listen`.
        reader_timeout_seconds: how long a stream may have something to read and not be read.
        stall_seconds: after how long in one pass the engine is taken to be wedged.
        keepalive_seconds: after how long without a sign of life a client is asked whether it is still there; half as
            long again, and its calls end.
        connection_seconds: after about how long a connection is replaced by a new one; calls on the old one go on to
            their ends. Clients look a name's addresses up again when one is, and so find servers that were added.
        receive_seconds: how long a request may take to arrive, from its call's beginning.
        debug: whether channelz tells of connections and calls.
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
    debug: bool = False

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
                raise ListenError(f"{self.listen} has no port; say HOST:PORT, such as localhost:50051, or unix:PATH")
            if int(port) > MAX_PORT:
                raise ListenError(f"{self.listen}: there is no port {port}; the last is {MAX_PORT}")
        if self.metrics_listen is not None:
            split_address(self.metrics_listen)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ListenError("--tls-cert and --tls-key belong together: a certificate and its private key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ListenError("--tls-client-ca needs --tls-cert and --tls-key: without TLS nobody shows a certificate")
        if self.tls_cert is None and not self.insecure and not is_local(self.listen):
            raise ListenError(
                f"{self.listen} can be reached from other machines and the connection would not be encrypted; "
                "give --tls-cert and --tls-key, listen on localhost, or say --insecure where the network itself is "
                "trusted"
            )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ListenError: where it is not that.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ListenError(f"{address} is not HOST:PORT, such as localhost:9090, with a port of at most {MAX_PORT}")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
