"""TLS: the server's certificate, and the certificate authority for clients (mutual TLS).

gRPC fetches the certificates for each new connection, so that renewed files take effect with the next connection;
existing connections keep theirs. OpenSSL checks the files before gRPC gets them, since gRPC notices a mismatch of key
and certificate only when a client connects.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from gradellm_server.auth.file_watcher import FileWatcher, SecurityFileError, read_file

_ATTEMPTS = 3  # to read files while they are being renewed


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        cert: the server's certificate, with intermediate ones after it.
        key: its private key, not encrypted.
        client_ca: the authority that signs clients' certificates; None if clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Certificate, private key and the clients' authority, in PEM; checked to belong together.

        Raises:
            SecurityFileError: if a file cannot be read or parsed, or key and certificate do not match.
        """
        for _ in range(_ATTEMPTS):
            content = self._content()
            self._check(content[2])
            if content == self._content():  # OpenSSL reads the files itself; it must have read the same
                return content
        raise SecurityFileError(f"{self.cert} and {self.key} changed each time they were read; try again")

    def _content(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            read_file(self.cert, "the certificate"),
            read_file(self.key, "the private key"),
            None if self.client_ca is None else read_file(self.client_ca, "the clients' certificate authority"),
        )

    def _check(self, client_ca: bytes | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a callback, OpenSSL would prompt for a password on the terminal.
            context.load_cert_chain(self.cert, self.key, password=self._refuse_encrypted)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise SecurityFileError(
                    f"the private key {self.key} does not belong to the certificate {self.cert}"
                ) from error
            raise SecurityFileError(
                f"{self.cert} and {self.key} are not a certificate and its private key, both in PEM form"
            ) from error
        if client_ca is None:
            return
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise SecurityFileError(f"{self.client_ca} holds no certificates in PEM form") from error

    def _refuse_encrypted(self) -> NoReturn:
        raise SecurityFileError(
            f"the private key {self.key} is encrypted; give one that is not, in a file that only the server may read"
        )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for a port, from the files as they are at each connection.

    If `files` has a `client_ca`, a client without a certificate fails in the handshake.

    Raises:
        SecurityFileError: if the files cannot be used now.
    """

    def load() -> grpc.ServerCertificateConfiguration:
        cert, key, client_ca = files.read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)

    certificates = FileWatcher(files.paths, load)
    return grpc.dynamic_ssl_server_credentials(
        certificates.value, lambda: certificates.value, require_client_authentication=files.client_ca is not None
    )
