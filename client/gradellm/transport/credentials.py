"""Channel credentials (TLS) and call credentials (the token) of a client."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from gradellm.errors import InvalidRequestError
from gradellm.transport.addresses import is_local

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Credentials", "Tls", "is_local"]


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS with your own certificates, as PEM files. `tls=True` trusts the well-known authorities only."""

    ca: str | os.PathLike[str] | None = None
    """Certificates of the authorities that sign the server's certificate; None for the well-known ones."""
    cert: str | os.PathLike[str] | None = None
    """This client's certificate, for a server that requires one."""
    key: str | os.PathLike[str] | None = None
    """The private key of `cert`."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises InvalidRequestError for an unreadable file, or `cert` without `key`."""
        if (self.cert is None) != (self.key is None):
            raise InvalidRequestError.of(
                "tls", "cert and key must be given together: a certificate and its private key"
            )
        ca, key, cert = _read("ca", self.ca), _read("key", self.key), _read("cert", self.cert)
        for name, path, content, kind in (
            ("ca", self.ca, ca, "CERTIFICATE"),
            ("cert", self.cert, cert, "CERTIFICATE"),
            ("key", self.key, key, "PRIVATE KEY"),
        ):
            if content is not None and not re.search(rb"-----BEGIN [A-Z ]*%s-----" % kind.encode(), content):
                raise InvalidRequestError.of(
                    "tls", f"{name} {os.fspath(path or '')} contains no {kind.lower()} in PEM format"
                )
        return grpc.ssl_channel_credentials(ca, key, cert)


class Credentials:
    """Channel credentials and call metadata, for both clients.

    Args:
        targets: the servers' targets.
        channel: gRPC channel credentials, in place of `tls`.
        tls: whether to use TLS, and with which certificates.
        token: the bearer token.

    Raises InvalidRequestError for an unreadable file, a malformed token, or a token that would be sent unencrypted to
    another machine.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        channel: grpc.ChannelCredentials | None = None,
        tls: bool | Tls = False,
        token: str | None = None,
    ) -> None:
        if channel is not None and tls:
            raise InvalidRequestError.of("tls", "cannot be combined with credentials; give one of the two")
        self.channel = channel
        """None for an insecure channel."""
        if tls:
            self.channel = (tls if isinstance(tls, Tls) else Tls()).credentials()
        self.metadata: tuple[tuple[str, str], ...] = ()
        """Sent with every call."""
        if token is not None:
            if not re.fullmatch(r"[!-~]+", token):  # not quoted: errors end up in logs
                raise InvalidRequestError.of("token", "must be printable ASCII characters without spaces")
            insecure = None if self.channel is not None else next((t for t in targets if not is_local(t)), None)
            if insecure is not None:
                raise InvalidRequestError.of(
                    "token", f"would be sent to {insecure} unencrypted; use TLS (tls=True, --tls)"
                )
            self.metadata = (("authorization", f"Bearer {token}"),)


def _read(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError.of(
            "tls", f"{name} {os.fspath(path or '')} cannot be read: {error.strerror}"
        ) from error
