"""The file of tokens: parsing, look-up, the command that makes tokens, and reloading."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gradellm_server.auth.file_watcher import SecurityFileError
from gradellm_server.auth.tokens import METHODS, Client, Clients, entry, main, make_token, read_clients
from gradellm_server.rpc.rpcs import STREAMING_RPCS, UNARY_RPCS


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_methods_match_the_wire_contract() -> None:
    assert {*STREAMING_RPCS, *UNARY_RPCS, "Follow", "GetServerInfo", "ServerReflectionInfo"} == set(METHODS)


def test_a_file_names_clients_and_their_limits(tmp_path: Path) -> None:
    (alice, alice_hash), (bob, bobs), (bobs_next, bobs_second) = make_token(), make_token(), make_token()
    path = written(
        tmp_path / "tokens.toml",
        f"""
        [alice]
        sha256 = "{alice_hash}"
        expires = 2999-01-01T00:00:00+02:00
        max_concurrent_streams = 2
        tokens_per_minute = 1000
        methods = ["Generate"]
        [bob]
        sha256 = ["{bobs}", "{bobs_second}"]
        """,
    )
    clients = read_clients(path)
    assert clients.find(alice) == clients.clients[0]
    assert clients.clients[0].methods == frozenset(["Generate"])
    assert (clients.clients[0].max_concurrent_streams, clients.clients[0].tokens_per_minute) == (2, 1000)
    for token in (bob, bobs_next):
        found = clients.find(token)
        assert found == clients.clients[1]
        assert (found.expires, found.methods, found.tokens_per_minute) == (None, None, None)
    for unknown in ("", alice_hash, alice[:-1], alice + "x", make_token()[0], "\udcff", "é"):
        assert clients.find(unknown) is None


def test_a_token_is_valid_until_it_expires() -> None:
    token, sha256 = make_token()
    end = datetime(2030, 1, 1, tzinfo=UTC)
    clients = Clients((Client("alice", (bytes.fromhex(sha256),), expires=end),))
    assert clients.find(token, end - timedelta(microseconds=1)) is not None
    assert clients.find(token, end) is None


HASH = "0" * 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[alice", "is not TOML"),
        ("tokens_per_minute = 3", "limits belong under a client's name"),
        ('["a b"]\nsha256 = ""', "a table's name must be 1 to 64 letters"),
        ("[alice]", "sha256 must be 64 hexadecimal digits"),
        ('[alice]\nsha256 = "gradellm_secret"', "sha256 must be 64 hexadecimal digits"),
        ("[alice]\nsha256 = []", "sha256 must be 64 hexadecimal digits"),
        (f'[alice]\nsha256 = "{HASH}"\nexpires = "2027-01-01"', "expires must be a time with its zone"),
        (f'[alice]\nsha256 = "{HASH}"\nexpires = 2027-01-01T00:00:00', "expires must be a time with its zone"),
        (f'[alice]\nsha256 = "{HASH}"\nmax_concurrent_streams = 0', "max_concurrent_streams must be a whole number"),
        (f'[alice]\nsha256 = "{HASH}"\ntokens_per_minute = true', "tokens_per_minute must be a whole number"),
        (f'[alice]\nsha256 = "{HASH}"\nmethods = ["Generat"]', "methods must be a list of Generate"),
        (f'[alice]\nsha256 = "{HASH}"\nmethods = "Generate"', "methods must be a list of Generate"),
        (f'[alice]\nsha256 = "{HASH}"\nmax_streams = 3', r"\[alice\] has unknown keys max_streams;"),
        (f'[alice]\nsha256 = "{HASH}"\n[bob]\nsha256 = "{HASH}"', "alice and bob have the same token"),
    ],
)
def test_errors_of_a_file_do_not_quote_its_secrets(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SecurityFileError, match=words) as refused:
        read_clients(written(tmp_path / "tokens.toml", text))
    assert "gradellm_secret" not in str(refused.value)


def test_an_empty_file_rejects_every_call(tmp_path: Path) -> None:
    assert read_clients(written(tmp_path / "tokens.toml", "")).clients == ()


def test_the_command_prints_a_token_and_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["alice", "--expires-days", "2", "--max-concurrent-streams", "3", "--tokens-per-minute", "500"]
    assert main([*arguments, "--methods", "Generate,Tokenize"]) == 0
    captured = capsys.readouterr()
    token = next(line for line in captured.err.splitlines() if line.startswith("gradellm_"))
    assert len(token) == len("gradellm_") + 43  # 256 bits
    assert token not in captured.out
    found = read_clients(written(tmp_path / "tokens.toml", captured.out)).find(token)
    assert found is not None
    assert found.hashes == (hashlib.sha256(token.encode()).digest(),)
    assert found.expires is not None
    assert timedelta(days=1.9) < found.expires - datetime.now(UTC) < timedelta(days=2.1)
    assert (found.name, found.max_concurrent_streams, found.tokens_per_minute) == ("alice", 3, 500)
    assert found.methods == frozenset(["Generate", "Tokenize"])


@pytest.mark.parametrize("arguments", [["a b"], ["alice", "--methods", "All"], ["alice", "--expires-days", "0"], []])
def test_the_command_refuses_invalid_entries(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_gradellm_token_runs_the_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gradellm", "token", "alice"], capture_output=True, text=True, timeout=60, check=True
    )
    assert read_clients(written(tmp_path / "tokens.toml", ended.stdout)).find(ended.stderr.splitlines()[1]) is not None


def test_an_entry_is_read_back_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path / "tokens.toml", entry("a", HASH, {"expires": datetime(2030, 1, 1, tzinfo=UTC)}) + "\n")
    assert read_clients(path).clients[0].expires == datetime(2030, 1, 1, tzinfo=UTC)
    assert "2030-01-01T00:00:00Z" in path.read_text()
