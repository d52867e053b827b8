"""How a server listens and how much it takes. Imports nothing heavy: options are checked before torch is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


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
    """

    listen: str = "localhost:50051"
    insecure: bool = False
    max_queued: int = 64
    max_queued_tokens: int = 262144
    max_message_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("max_queued_tokens", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ListenError(f"{name} must be at least 1, was {getattr(self, name)}")
        if self.max_queued < 0:
            raise ListenError(f"max_queued must not be negative, was {self.max_queued}")
        if not self.listen.startswith("unix:") and not self.listen.rpartition(":")[2].isdecimal():
            raise ListenError(f"{self.listen} has no port; say HOST:PORT, such as localhost:50051, or unix:PATH")
        if not self.insecure and not is_local(self.listen):
            raise ListenError(
                f"{self.listen} can be reached from other machines and the connection would not be encrypted; "
                "listen on localhost, or say --insecure where the network itself is trusted"
            )


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
