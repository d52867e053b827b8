"""Tokens on a real server: authentication, allowed methods, and limits under concurrency."""

from __future__ import annotations

import json
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gradellm import Client, OverloadedError, PermissionDeniedError, UnauthenticatedError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from gradellm_server.auth import file_watcher
from gradellm_server.auth.quota import Quota, Quotas
from gradellm_server.auth.tokens import entry, make_token

if TYPE_CHECKING:
    from server.conftest import RunningServer, Serving

WHOLE, LIMITED, INFO, EXPIRED = (make_token() for _ in range(4))
FILE = f"""
{entry("whole", WHOLE[1], {})}
{entry("limited", LIMITED[1], {"max_concurrent_streams": 3, "tokens_per_minute": 100})}
{entry("info", INFO[1], {"methods": ["GetServerInfo"]})}
{entry("expired", EXPIRED[1], {})}
expires = 2020-01-01T00:00:00Z
"""
REFUSED = [None, "", "Bearer", f"Basic {WHOLE[0]}", f"Bearer {EXPIRED[0]}", f"Bearer {make_token()[0]}", WHOLE[0]]


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_watcher, "CHECK_SECONDS", 0.0)
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def quotas(monkeypatch: pytest.MonkeyPatch) -> dict[str, Quota]:
    """The clients' quotas, by name; to be requested before the server is started."""
    by_name: dict[str, Quota] = {}

    def of(self: Quotas, client: Any) -> Quota:
        return by_name.setdefault(client.name, Quota(client))

    monkeypatch.setattr(Quotas, "of", of)
    return by_name


@pytest.fixture
def guarded(serving: Serving, tokens: Path) -> Iterator[RunningServer]:
    with serving(tokens=tokens) as server:
        yield server


def calls(server: RunningServer, metadata: Any) -> dict[str, Callable[[], Any]]:
    """Every RPC of every service but health checks."""
    stub = explainer_pb2_grpc.ExplainerServiceStub(server.channel)  # type: ignore[no-untyped-call]
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    nothing: Any = server.channel.unary_unary("/some.Service/Nothing")
    text_input = pb.Input(prompt="MARKER once upon a time")
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    return {
        "Generate": lambda: list(
            stub.Generate(pb.GenerateRequest(input=text_input, max_new_tokens=2), metadata=metadata)
        ),
        "Attribute": lambda: list(
            stub.Attribute(pb.AttributeRequest(input=text_input, completion=" there"), metadata=metadata)
        ),
        "Evaluate": lambda: list(stub.Evaluate(pb.EvaluateRequest(input=text_input), metadata=metadata)),
        "Tokenize": lambda: stub.Tokenize(pb.TokenizeRequest(input=text_input), metadata=metadata),
        "GetServerInfo": lambda: stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata),
        "ServerReflectionInfo": lambda: list(reflection.ServerReflectionInfo(iter([listing]), metadata=metadata)),
        "Nothing": lambda: nothing(b"\xff" * 100, metadata=metadata),
    }


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, str]:
    """Code, message and reason of a failed call."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is None or status.details[0].Unpack(info)
    return error.code(), error.details(), info.reason


@pytest.fixture
def untouched(guarded: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a request is parsed, or reaches the engine."""

    def reached(*args: object, **keywords: object) -> None:
        pytest.fail("a refused call reached the engine")

    monkeypatch.setattr(guarded.server.engine_thread, "submit", reached)
    monkeypatch.setattr("gradellm_server.rpc.requests_from_wire.parse", reached)
    for name in ("generation_request", "attribution_request", "evaluation_request", "tokenize"):
        monkeypatch.setattr(guarded.engine, name, reached)


@pytest.mark.usefixtures("untouched")
def test_every_rpc_refuses_an_invalid_token_with_the_same_message(guarded: RunningServer) -> None:
    refusals = set()
    for value in REFUSED:
        metadata = [] if value is None else [("authorization", value)]
        for call in calls(guarded, metadata).values():
            refusals.add(refusal(call))
    two = [("authorization", f"Bearer {WHOLE[0]}"), ("authorization", "Bearer x")]
    refusals.add(refusal(calls(guarded, two)["Generate"]))
    ((code, message, reason),) = refusals  # for every RPC and every kind of invalid token
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_NOT_ACCEPTED")
    assert "gradellm_" not in message
    assert "whole" not in message


@pytest.mark.usefixtures("untouched")
def test_a_refused_call_ends_before_its_request_has_arrived(guarded: RunningServer) -> None:
    def never() -> Iterator[bytes]:
        time.sleep(30)
        yield b""

    send: Any = guarded.channel.stream_stream("/gradellm.v1.ExplainerService/Generate")
    assert refusal(lambda: list(send(never(), timeout=5)))[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_allows_every_rpc_unless_methods_are_named(guarded: RunningServer) -> None:
    with Client(guarded.address, token=WHOLE[0], retry=None) as client:
        assert client.explain("Once upon a time", max_new_tokens=2).tokens
        assert client.tokenize("Once").tokens
        assert client.server_info().model.family == "llama"
    valid = calls(guarded, [("authorization", f"bearer {WHOLE[0]}")])
    assert valid["ServerReflectionInfo"]()
    assert refusal(valid["Nothing"])[0] is grpc.StatusCode.UNIMPLEMENTED
    with Client(guarded.address, token=INFO[0], retry=None) as client:
        assert client.server_info().model.family == "llama"
        with pytest.raises(PermissionDeniedError, match="info may not call Tokenize; it may call GetServerInfo"):
            client.tokenize("Once")
    for name, call in calls(guarded, [("authorization", f"Bearer {INFO[0]}")]).items():
        if name != "GetServerInfo":
            assert refusal(call)[::2] == (grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_ALLOWED")


def test_health_checks_need_no_token(guarded: RunningServer) -> None:
    health: Any = health_pb2_grpc.HealthStub(guarded.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(health_pb2.HealthCheckRequest()).status == serving
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == serving
    watch.cancel()


def test_a_clients_concurrent_streams_are_limited(quotas: dict[str, Quota], guarded: RunningServer) -> None:
    tokens_of_one = 10
    with (
        Client(guarded.address, token=WHOLE[0], retry=None) as other,
        Client(guarded.address, token=LIMITED[0], retry=None) as client,
    ):

        def open_one(_: int) -> Any:
            stream = client.generate("Once", attribution=None, max_new_tokens=tokens_of_one)
            try:
                next(stream)
            except OverloadedError as error:
                return error
            return stream

        with ThreadPoolExecutor(24) as pool:
            opened = list(pool.map(open_one, range(24)))
            refused = [call for call in opened if isinstance(call, OverloadedError)]
            streams = [call for call in opened if not isinstance(call, OverloadedError)]
            assert 1 <= len(streams) <= 100 // tokens_of_one
            assert (
                {"CLIENT_STREAMS"}
                <= {call.reason for call in refused}
                <= {"CLIENT_STREAMS", "CLIENT_TOKENS_PER_MINUTE"}
            )
            assert all(call.retry_after_seconds for call in refused)
            assert other.explain("Once", max_new_tokens=1).tokens  # other clients are not limited
            for stream in streams:
                stream.close()
    _until(lambda: quotas["limited"].num_streams == 0)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_concurrent_requests_do_not_exceed_a_clients_tokens_per_minute(guarded: RunningServer) -> None:
    prompt = "Once upon a time"
    with Client(guarded.address, token=WHOLE[0], retry=None) as client:
        size = len(client.tokenize(prompt).tokens) + 8
    with Client(guarded.address, token=LIMITED[0], retry=None) as client:
        waits: list[float] = []

        def ask(_: int) -> int:
            try:
                explanation = client.explain(prompt, attribution=None, max_new_tokens=8, temperature=1.0)
            except OverloadedError as error:
                waits.append(error.retry_after_seconds or 0.0)
                return 0
            return len(explanation.prompt_tokens) + len(explanation.tokens)

        with ThreadPoolExecutor(3) as pool:
            used = list(pool.map(ask, range(40)))
        assert 100 - size < sum(used) <= 100
        assert waits
        assert all(0 < seconds <= 60 for seconds in waits)
        with pytest.raises(OverloadedError, match="limited may take 100 a minute, of which"):
            client.explain(prompt, max_new_tokens=8)


def test_a_request_beyond_tokens_per_minute_has_no_retry_delay(guarded: RunningServer) -> None:
    with Client(guarded.address, token=LIMITED[0], retry=None) as client:
        with pytest.raises(OverloadedError, match=r"may take 20\d tokens.*ask for fewer") as refused:
            client.explain("Once", max_new_tokens=200)
        assert refused.value.retry_after_seconds is None
        client.explain("Once", attribution=None, max_new_tokens=40)
        with pytest.raises(OverloadedError, match=r"may take 9\d tokens.* a minute, of which \d+ are left now"):
            client.explain("Once", attribution=None, max_new_tokens=90)


def test_unused_tokens_are_given_back(quotas: dict[str, Quota], guarded: RunningServer) -> None:
    with Client(guarded.address, token=LIMITED[0], retry=None) as client:
        explained = client.explain("Once", attribution=None, max_new_tokens=1)
        ended = [client.explain("Once", attribution=None, max_new_tokens=60, stop=[explained.text]) for _ in range(2)]
        usages = [explanation.finished.usage for explanation in (explained, *ended) if explanation.finished]
        assert len(usages) == 3  # without the tokens given back, the last would not fit
        total = sum(usage.prompt_tokens + usage.completion_tokens for usage in usages)
        assert quotas["limited"]._num_charged == total < 60


def test_changes_of_the_file_take_effect(guarded: RunningServer, tokens: Path) -> None:
    late, token_hash = make_token()
    with (
        Client(guarded.address, token=late, retry=None) as client,
        Client(guarded.address, token=WHOLE[0], retry=None) as full_client,
    ):
        with pytest.raises(UnauthenticatedError):
            client.server_info()
        tokens.write_text(entry("late", token_hash, {}))
        assert client.server_info().model.family == "llama"
        with pytest.raises(UnauthenticatedError):
            full_client.server_info()
        tokens.write_text("[broken")
        assert client.server_info().model.family == "llama"


def test_clients_do_not_share_the_prefix_cache(serving: Serving, tmp_path: Path) -> None:
    (alice, alice_hash), (bob, bob_hash) = make_token(), make_token()
    path = tmp_path / "two.toml"
    path.write_text(f"{entry('alice', alice_hash, {})}\n{entry('bob', bob_hash, {})}\n")
    prompt = "The very same words, sent by two clients, long enough for a prefix to be worth it, and then some."
    with serving(tokens=path) as server:
        found = []
        for token in (alice, bob, alice, bob):
            with Client(server.address, token=token, retry=None) as client:
                events = [
                    *client.generate(prompt, max_new_tokens=2),
                    *client.attribute_events(prompt, completion=" and"),
                    *client.evaluate_events(prompt, max_new_tokens=2, methods=["random"], samples=1),
                ]
                found.append([e.finished.usage.reused_prompt_tokens for e in events if e.finished])
    assert [[reused > 0 for reused in row] for row in found] == [[False, True, True]] * 2 + [[True] * 3] * 2


def test_refusals_name_the_client_but_never_a_token(guarded: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for value in REFUSED[1:]:
            for call in calls(guarded, [("authorization", str(value))]).values():
                refusal(call)
    logged = json.dumps([record.getMessage() for record in caplog.records])
    assert "gradellm_" not in logged.replace("gradellm_server", "")
    assert "MARKER" not in logged


def test_tokenize_is_charged_to_the_client(guarded: RunningServer) -> None:
    with Client(guarded.address, token=LIMITED[0], retry=None) as client:
        size = len(client.tokenize("once upon a time there was a").tokens)
        for _ in range(100 // size - 1):
            client.tokenize("once upon a time there was a")
        with pytest.raises(OverloadedError, match="limited may take 100 a minute") as refused:
            client.tokenize("once upon a time there was a")
        assert refused.value.reason == "CLIENT_TOKENS_PER_MINUTE"


class UnreadCall:
    """A call over a bare socket with an HTTP/2 window of 0, so that the server cannot send a byte of a response."""

    def __init__(self, address: str, rpc: str, token: str, request: pb.GenerateRequest) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/gradellm.v1.ExplainerService/{rpc}",
            ":authority": address,
            "te": "trailers",
            "content-type": "application/grpc",
            "authorization": f"Bearer {token}",
        }
        # Literal header fields, never indexed, without Huffman coding (RFC 7541, 6.2.3).
        headers = b"".join(b"\x10" + _string(name) + _string(value) for name, value in fields.items())
        message = request.SerializeToString()
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(4, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS: INITIAL_WINDOW_SIZE 0
            + _frame(1, 4, 1, headers)  # HEADERS, END_HEADERS
            + _frame(0, 1, 1, struct.pack(">BI", 0, len(message)) + message)  # DATA, END_STREAM
        )

    def reset(self) -> None:
        self._socket.sendall(_frame(3, 0, 1, struct.pack(">I", 8)))  # RST_STREAM: CANCEL

    def close(self) -> None:
        self._socket.close()


def _string(text: str) -> bytes:
    content = text.encode()
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest, length = [127], len(content) - 127
    while length >= 128:
        rest.append(length % 128 + 128)
        length //= 128
    return bytes([*rest, length]) + content


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


def test_a_reset_call_without_flow_control_window_is_charged(quotas: dict[str, Quota], guarded: RunningServer) -> None:
    request = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=60)
    call = UnreadCall(guarded.address, "Generate", LIMITED[0], request)
    try:
        _until(lambda: "limited" in quotas and quotas["limited"].num_streams == 1)
        _until(lambda: guarded.server.engine_thread.num_running == 1)
        _until(
            lambda: (
                guarded.server.engine_thread.num_unfinished == 0 or guarded.engine.scheduler.running[0].num_tokens > 9
            )
        )
        call.reset()
        _until(lambda: quotas["limited"].num_streams == 0)
        assert quotas["limited"]._num_charged > 5
    finally:
        call.close()
