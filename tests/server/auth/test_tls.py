"""TLS and mutual TLS on a real server: handshakes, renewal without a restart, and unusable files."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from gradellm import Client, Tls, UnauthenticatedError, UnavailableError
from gradellm_server.__main__ import main
from gradellm_server.auth import file_watcher
from gradellm_server.auth.file_watcher import SecurityFileError
from gradellm_server.auth.tls import TlsFiles
from support.certificates import Authority, Pair

if TYPE_CHECKING:
    from server.conftest import RunningServer, Serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.sign("server")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed files are found at the next connection, not a second later."""
    monkeypatch.setattr(file_watcher, "CHECK_SECONDS", 0.0)


def model_of(server: RunningServer, tls: Tls) -> str:
    with Client(server.address, tls=tls, retry=None) as client:
        return client.server_info(timeout=20).model.family


def test_tls_needs_a_client_that_trusts_the_authority(serving: Serving, authority: Authority, pair: Pair) -> None:
    other = Authority(authority.cert.parent, "other")
    with serving(tls_cert=pair.cert, tls_key=pair.key) as server:
        assert model_of(server, Tls(ca=authority.cert)) == "llama"
        with pytest.raises(UnauthenticatedError, match="CERTIFICATE_VERIFY_FAILED"):
            model_of(server, Tls(ca=other.cert))
        with Client(server.address, retry=None) as client, pytest.raises(UnavailableError, match="TLS"):
            client.server_info(timeout=20)


def test_mutual_tls_accepts_only_valid_certificates_of_the_client_authority(
    serving: Serving, authority: Authority, pair: Pair
) -> None:
    clients = Authority(authority.cert.parent, "clients")
    right, expired, wrong = clients.sign("right"), clients.sign("expired", days=-1), authority.sign("wrong")
    with serving(tls_cert=pair.cert, tls_key=pair.key, tls_client_ca=clients.cert) as server:
        assert model_of(server, Tls(authority.cert, right.cert, right.key)) == "llama"
        for tls in (
            Tls(authority.cert, expired.cert, expired.key),
            Tls(authority.cert, wrong.cert, wrong.key),
            Tls(authority.cert),
        ):
            # The handshake fails before there is a call that could have a status.
            with pytest.raises((UnavailableError, UnauthenticatedError)) as refused:
                model_of(server, tls)
            cause = refused.value.__cause__
            assert isinstance(cause, grpc.RpcError)
            assert cause.code() is grpc.StatusCode.UNAVAILABLE
            assert "llama" not in str(refused.value)
        assert model_of(server, Tls(authority.cert, right.cert, right.key)) == "llama"


def replace(old: Pair, new: Pair) -> None:
    for source, target in ((new.cert, old.cert), (new.key, old.key)):
        new_file = target.with_suffix(".new")
        shutil.copy(source, new_file)
        os.replace(new_file, target)


def test_renewed_certificates_are_used_without_a_restart(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    pair, renewed = before.sign("server"), after.sign("renewed")
    with serving(tls_cert=pair.cert, tls_key=pair.key) as server:
        with Client(server.address, tls=Tls(before.cert), retry=None) as connected:
            assert connected.server_info().model.family == "llama"
            replace(pair, renewed)
            assert model_of(server, Tls(after.cert)) == "llama"
            with pytest.raises(UnauthenticatedError):
                model_of(server, Tls(before.cert))
            assert connected.server_info().model.family == "llama"  # an existing connection stays open
        with caplog.at_level(logging.WARNING):
            pair.key.write_text("a renewal that went wrong")
            assert model_of(server, Tls(after.cert)) == "llama"
            assert model_of(server, Tls(after.cert)) == "llama"
        warnings = [record for record in caplog.records if record.name == "gradellm_server.auth.file_watcher"]
        assert len(warnings) == 1  # once for each change
        assert "keeping the previous version" in warnings[0].getMessage()
        replace(pair, before.sign("again"))
        assert model_of(server, Tls(before.cert)) == "llama"


Broken = Callable[[Authority, Pair], tuple[TlsFiles, str]]


def _absent(authority: Authority, pair: Pair) -> tuple[TlsFiles, str]:
    return TlsFiles(pair.cert.with_name("absent.pem"), pair.key), "absent.pem cannot be read: No such file"


def _mismatched(authority: Authority, pair: Pair) -> tuple[TlsFiles, str]:
    return TlsFiles(pair.cert, authority.sign("other").key), "other.key does not belong to the certificate"


def _no_certificate(authority: Authority, pair: Pair) -> tuple[TlsFiles, str]:
    pair.cert.write_text("nonsense")
    return TlsFiles(pair.cert, pair.key), "not a certificate and its private key, both in PEM form"


def _encrypted(authority: Authority, pair: Pair) -> tuple[TlsFiles, str]:
    hidden = authority.sign("hidden", password=b"secret")
    return TlsFiles(hidden.cert, hidden.key), "is encrypted"


def _no_authority(authority: Authority, pair: Pair) -> tuple[TlsFiles, str]:
    return TlsFiles(pair.cert, pair.key, pair.key), "holds no certificates"


@pytest.mark.parametrize("broken", [_absent, _mismatched, _no_certificate, _encrypted, _no_authority])
def test_errors_name_the_unusable_file(authority: Authority, pair: Pair, broken: Broken) -> None:
    files, words = broken(authority, pair)
    with pytest.raises(SecurityFileError, match=words):
        files.read()
    arguments = ["--listen", "127.0.0.1:0", "--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    arguments += [] if files.client_ca is None else ["--tls-client-ca", str(files.client_ca)]
    assert main([*arguments, "--model", "never/looked-for"]) == 2


def test_broken_files_end_the_start_with_one_line(capsys: pytest.CaptureFixture[str], pair: Pair) -> None:
    absent = pair.key.with_name("absent.key")
    assert main(["--listen", "127.0.0.1:0", "--tls-cert", str(pair.cert), "--tls-key", str(absent)]) == 2
    output = capsys.readouterr().err
    assert output.strip().splitlines()[-1].startswith("error: the private key")
    assert "weights" not in output
