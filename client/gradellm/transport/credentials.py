"""How a client connects, and by which token it is let in."""

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

__all__ = ["Security", "Tls", "is_local"]


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS by certificates of one's own, in PEM files. `tls=True` takes the well-known authorities alone."""

    ca: str | os.PathLike[str] | None = None
    """Certificates of who signs the server's; None for the well-known authorities."""
    cert: str | os.PathLike[str] | None = None
    """This client's certificate, where the server asks for one."""
    key: str | os.PathLike[str] | None = None
    """Its private key."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises InvalidRequestError where one cannot be read, or `cert` and `key` are not together."""
        if (self.cert is None) != (self.key is None):
            raise InvalidRequestError.of("tls", "cert and key belong together: a certificate and its private key")
        ca, key, cert = _read("ca", self.ca), _read("key", self.key), _read("cert", self.cert)
        for name, path, content, kind in (
            ("ca", self.ca, ca, "CERTIFICATE"),
            ("cert", self.cert, cert, "CERTIFICATE"),
            ("key", self.key, key, "PRIVATE KEY"),
        ):
            if content is not None and not re.search(rb"-----BEGIN [A-Z ]*%s-----" % kind.encode(), content):
                raise InvalidRequestError.of(
                    "tls", f"{name} {os.fspath(path or '')} holds no {kind.lower()} in PEM form"
                )
        return grpc.ssl_channel_credentials(ca, key, cert)


class Security:
    """What both kinds of client know of it.

    Args:
        targets: where servers are.
        credentials: gRPC's own, in place of `tls`.
        tls: whether to encrypt, and by which certificates.
        token: what the server knows this client by.

    Raises InvalidRequestError where files cannot be read, the token is none, or it would travel in the open.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls: bool | Tls = False,
        token: str | None = None,
    ) -> None:
        if credentials is not None and tls:
            raise InvalidRequestError.of("tls", "credentials say already how to connect; give one of the two")
        self.credentials = credentials
        if tls:
            self.credentials = (tls if isinstance(tls, Tls) else Tls()).credentials()
        self.metadata: tuple[tuple[str, str], ...] = ()
        """Beside every call."""
        if token is not None:
            if not re.fullmatch(r"[!-~]+", token):  # without quoting it: errors end in logs
                raise InvalidRequestError.of("token", "must be printable ASCII characters without spaces")
            open_to = None if self.credentials is not None else next((t for t in targets if not is_local(t)), None)
            if open_to is not None:
                raise InvalidRequestError.of(
                    "token", f"would be sent to {open_to} in the open; connect by TLS (tls=True, --tls)"
                )
            self.metadata = (("authorization", f"Bearer {token}"),)


def _read(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError.of(
            "tls", f"{name} {os.fspath(path or '')} cannot be read: {error.strerror}"
        ) from error
