"""TLS: the server's certificate, and whose certificates it asks of clients.

gRPC asks for the certificates at every new connection, so that renewed files are in use from the next one on;
connections that stand keep theirs. Files are checked by OpenSSL before gRPC gets them: that a key belongs to another
certificate shows in gRPC only when a client connects.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from gradellm_server.auth.file_watcher import Reloading, SecurityFileError, read_file

_TRIES = 3  # to read files that somebody is just renewing


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        cert: the server's certificate, with intermediate ones after it.
        key: its private key, not encrypted.
        client_ca: certificates of who signs clients'; None where clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Certificate, key, and the clients' authorities, as PEM; they belong together.

        Raises:
            SecurityFileError: where one cannot be read or is none, or they do not belong together.
        """
        for _ in range(_TRIES):
            found = self._content()
            self._check(found[2])
            if found == self._content():  # OpenSSL reads the files itself: see that it read the same
                return found
        raise SecurityFileError(f"{self.cert} and {self.key} change all the time")

    def _content(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            read_file(self.cert, "the certificate"),
            read_file(self.key, "the private key"),
            None if self.client_ca is None else read_file(self.client_ca, "the clients' certificate authority"),
        )

    def _check(self, client_ca: bytes | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # OpenSSL would ask for a password on the terminal, and wait.
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
    """What a port takes to speak TLS, by the files as they are at each connection.

    Where `files` says whose certificates clients need, a connection without one ends in its handshake.

    Raises:
        SecurityFileError: where the files cannot be used now.
    """

    def load() -> grpc.ServerCertificateConfiguration:
        cert, key, client_ca = files.read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)

    certificates = Reloading(files.paths, load)
    return grpc.dynamic_ssl_server_credentials(
        certificates.value, lambda: certificates.value, require_client_authentication=files.client_ca is not None
    )
