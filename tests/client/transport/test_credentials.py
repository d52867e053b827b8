"""TLS and tokens: what is sent, what is never sent unencrypted, and the errors of their flags."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from gradellm import AsyncClient, Client, InvalidRequestError, Tls
from gradellm.cli import main
from gradellm.transport.credentials import Credentials, is_local
from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from support.certificates import Authority

TOKEN = "gradellm_made_up_for_a_test"


class Listening(explainer_pb2_grpc.ExplainerServiceServicer):
    """Records the metadata of each call."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        return pb.GetServerInfoResponse(model=pb.ModelInfo(name="listening"))

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        yield from ()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def encrypted(authority: Authority) -> Iterator[tuple[str, Listening]]:
    """A server that asks for a certificate; its address, and what it hears."""
    pair, listening = authority.sign("server"), Listening()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(listening, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.cert.read_bytes())], authority.cert.read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}", listening
    server.stop(None).wait()


def test_both_clients_send_the_token_with_every_call(encrypted: tuple[str, Listening], authority: Authority) -> None:
    address, listening = encrypted
    own = authority.sign("own")
    tls = Tls(ca=authority.cert, cert=str(own.cert), key=own.key)
    with Client(address, token=TOKEN, tls=tls, retry=None) as client:
        client.server_info()
        assert list(client.generate("Once")) == []

    async def asynchronously() -> None:
        async with AsyncClient(address, token=TOKEN, tls=tls, retry=None) as other:
            await other.server_info()
            assert [event async for event in other.generate("Once")] == []

    asyncio.run(asynchronously())
    assert [sent.get("authorization") for sent in listening.metadata] == [f"Bearer {TOKEN}"] * 4


@pytest.mark.parametrize(
    "target", ["example.org:50051", "10.0.0.1:1", "dns:///example.org:1", "[::2]:1", "localhost.x:1"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_token_is_sent_in_the_open_to_another_machine(kind: Any, target: str) -> None:
    with pytest.raises(InvalidRequestError, match="unencrypted") as refused:
        kind(target, token=TOKEN)
    assert TOKEN not in str(refused.value)
    assert Credentials([target]).metadata == ()
    assert Credentials([target], token=TOKEN, tls=True).metadata


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.8.8.8", True),
        ("[::1]:1", True),
        ("::1", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:[::1]:1", True),
        ("dns:///localhost:1", True),
        ("dns://8.8.8.8/localhost:1", True),
        ("unix:/tmp/x", True),
        ("unix:///tmp/x", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("", False),
        ("xds:///localhost", False),
    ],
)
def test_local_addresses(target: str, local: bool) -> None:
    assert is_local(target) is local


@pytest.mark.parametrize("token", ["", "two words", "é", "line\n"])
def test_a_token_that_is_none_is_refused_without_quoting_it(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="printable ASCII") as refused:
        Client("localhost:1", token=token)
    assert not token.strip() or token not in str(refused.value)


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_text("no certificate")
    with pytest.raises(InvalidRequestError, match=r"ca .*x\.pem contains no certificate in PEM format"):
        Client("localhost:1", tls=Tls(ca=path))
    with pytest.raises(InvalidRequestError, match=r"cert .*x\.pem contains no certificate in PEM format"):
        Client("localhost:1", tls=Tls(cert=path, key=path))


def test_files_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"absent.pem cannot be read: No such file"):
        Client("localhost:1", tls=Tls(ca=tmp_path / "absent.pem"))
    with pytest.raises(InvalidRequestError, match="be given together"):
        Client("localhost:1", tls=Tls(cert=tmp_path / "own.pem"))
    with pytest.raises(InvalidRequestError, match="give one of the two"):
        Client("localhost:1", tls=True, credentials=grpc.ssl_channel_credentials())


def test_flags_and_environment_variables_are_equivalent(
    encrypted: tuple[str, Listening],
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, listening = encrypted
    own = authority.sign("own")
    flags = [
        "--target",
        address,
        "--tls-ca",
        str(authority.cert),
        "--tls-cert",
        str(own.cert),
        "--tls-key",
        str(own.key),
    ]
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert main(["info", *flags, "--token-file", str(file)]) == 0
    monkeypatch.setenv("GRADELLM_TOKEN", "another")
    assert main(["info", *flags]) == 0
    assert main(["info", *flags, "--token-file", str(file)]) == 0  # flags have precedence over the environment
    assert [sent.get("authorization") for sent in listening.metadata] == [
        f"Bearer {TOKEN}",
        "Bearer another",
        f"Bearer {TOKEN}",
    ]
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "example.org:1", "--token-file", "FILE"], "would be sent to example.org:1 unencrypted"),
        (["--target", "localhost:1", "--token-file", "absent"], "absent cannot be read"),
        (["--target", "localhost:1", "--token-file", "EMPTY"], "must contain one token"),
        (["--token-file", "FILE"], "needs --target"),
        (["--tls-ca", "FILE"], "needs --target"),
    ],
)
def test_flags_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    file, empty = tmp_path / "token", tmp_path / "empty"
    file.write_text(TOKEN)
    empty.touch()
    paths = {"FILE": str(file), "EMPTY": str(empty)}
    assert main(["explain", "Once", *(paths.get(argument, argument) for argument in arguments)]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert TOKEN not in errors
