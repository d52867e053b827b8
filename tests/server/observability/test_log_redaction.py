"""The text of requests is in no log, metric or other caller's response; errors quote little of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gradellm import Client, DeadlineExceededError, UnavailableError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from gradellm_server.auth.tokens import entry, make_token
from gradellm_server.rpc.status import MAX_TEXT_BYTES

MARKER = "XyzzyMarker"
TOKEN, HASH = make_token()
START_SECONDS = 90


@contextmanager
def process(tmp_path: Path, *arguments: str) -> Iterator[tuple[str, Path]]:
    """A server process at log level debug; its address, and the file of its output."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entry("alice", HASH, {}) + "\n" + entry("bob", make_token()[1], {}))
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gradellm_server", "--listen", f"unix:{tmp_path}/socket", "--tokens", str(tokens)]
    with log.open("wb") as lines:
        running = subprocess.Popen(
            [*command, "--log-level", "debug", *arguments], stdin=subprocess.DEVNULL, stdout=lines, stderr=lines
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(f"unix:{tmp_path}/socket"):
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"unix:{tmp_path}/socket", log
        running.terminate()
        running.wait(30)
    finally:
        running.kill()
        running.wait()


def _answers(address: str) -> bool:
    if not Path(address.removeprefix("unix:")).exists():
        return False
    with Client(address, token=TOKEN, retry=None) as client:
        try:
            client.server_info(timeout=1)
        except (UnavailableError, DeadlineExceededError):
            return False
    return True


def requests(text: str) -> list[tuple[str, Any]]:
    """Requests of every RPC: valid, and invalid in each way that another part of the server detects."""
    prompt_input = pb.Input(prompt=text)
    chat = pb.Input(messages=[pb.Message(role=text, content=text), pb.Message(role="user", content=text)])
    bad_segment = pb.Input(prompt=text, segments=[pb.Segment(name=text, start=0, end=10**6)])
    twice = pb.Input(prompt=text, segments=[pb.Segment(name=text, start=0, end=3)] * 2)
    overlapping = pb.Input(
        prompt=text, segments=[pb.Segment(name=text, start=0, end=3), pb.Segment(name="b", start=1, end=4)]
    )
    options = pb.AttributionOptions(method=text)
    scores = pb.GivenScores(name=text, rows=[pb.ScoreRow(step=0, scores=[float("nan")])])
    return [
        ("Generate", pb.GenerateRequest(input=prompt_input, max_new_tokens=2, attribution=pb.AttributionOptions())),
        ("Generate", pb.GenerateRequest(input=prompt_input, max_new_tokens=2, stop=[text])),
        ("Generate", pb.GenerateRequest(input=prompt_input, max_new_tokens=10**9)),
        ("Generate", pb.GenerateRequest(input=prompt_input, temperature=float("nan"))),
        ("Generate", pb.GenerateRequest(input=prompt_input, attribution=options)),
        ("Generate", pb.GenerateRequest(input=pb.Input(prompt=text * 2000))),
        ("Generate", pb.GenerateRequest(input=chat, max_new_tokens=2)),
        *(("Generate", pb.GenerateRequest(input=each)) for each in (bad_segment, twice, overlapping)),
        (
            "Generate",
            pb.GenerateRequest(
                input=prompt_input, attribution=pb.AttributionOptions(contrast=pb.Contrast(text=text)), max_new_tokens=1
            ),
        ),
        ("Attribute", pb.AttributeRequest(input=prompt_input, completion=text)),
        ("Attribute", pb.AttributeRequest(input=prompt_input, completion=text, attribution=options)),
        ("Attribute", pb.AttributeRequest(input=prompt_input, completion=text, completion_ids=[1])),
        ("Attribute", pb.AttributeRequest(input=prompt_input, completion=text * 2000)),
        ("Evaluate", pb.EvaluateRequest(input=prompt_input, labels=[text, text])),
        (
            "Evaluate",
            pb.EvaluateRequest(input=prompt_input, completion=text, evaluation=pb.EvaluationOptions(scores=[scores])),
        ),
        (
            "Evaluate",
            pb.EvaluateRequest(
                input=prompt_input,
                evaluation=pb.EvaluationOptions(
                    methods=[pb.EvaluatedMethod(name=text, attribution=options)], rationale=[text]
                ),
            ),
        ),
        ("Tokenize", pb.TokenizeRequest(input=prompt_input)),
        ("Tokenize", pb.TokenizeRequest(input=bad_segment)),
        ("Tokenize", pb.TokenizeRequest()),
    ]


def ask(channel: grpc.Channel, token: str) -> list[grpc.RpcError]:
    """Send all requests and malformed bytes; returns the errors."""
    stub = explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]
    metadata = [("authorization", f"Bearer {token}"), ("x-note", MARKER)]
    errors = []
    sent: list[tuple[Callable[..., Any], Any]] = [
        (getattr(stub, name), request) for text in (MARKER, f"{MARKER} " * 400) for name, request in requests(text)
    ]
    path = "/gradellm.v1.ExplainerService/"
    raw: Any = channel
    sent += [(raw.unary_stream(path + name), MARKER.encode()) for name in ("Generate", "Attribute", "Evaluate")]
    sent += [(raw.unary_unary(path + name), MARKER.encode()) for name in ("Tokenize", "GetServerInfo", MARKER)]
    for call, request in sent:
        try:
            answer = call(request, metadata=metadata, timeout=60)
            list(answer) if hasattr(answer, "cancel") else answer
        except grpc.RpcError as error:
            errors.append(error)
    cancelled = stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=MARKER), max_new_tokens=50), metadata=metadata)
    next(cancelled)
    cancelled.cancel()
    return errors


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_log_of_a_process_holds_no_text_of_requests(tmp_path: Path, style: str) -> None:
    with process(tmp_path, "--log-format", style) as (address, log), grpc.insecure_channel(address) as channel:
        errors = ask(channel, TOKEN)
        refused = ask_refused(channel)
    lines = log.read_text()
    assert "Generate" in lines  # until it has logged
    assert MARKER not in lines
    assert TOKEN not in lines
    assert len(errors) > 20
    codes = {error.code() for error in [*errors, *refused]}
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # the longest exceed the limit of a message
    }
    for error in errors:  # errors quote the caller's own names, truncated
        assert len((error.details() or "").encode()) <= MAX_TEXT_BYTES + 4
    for error in refused:
        assert MARKER not in (error.details() or "")


def ask_refused(channel: grpc.Channel) -> list[grpc.RpcError]:
    stub = explainer_pb2_grpc.ExplainerServiceStub(channel)  # type: ignore[no-untyped-call]
    errors: list[grpc.RpcError] = []
    for name, request in requests(MARKER):
        try:
            answer = getattr(stub, name)(request, metadata=[("authorization", f"Bearer {MARKER}")])
            list(answer) if hasattr(answer, "cancel") else answer
        except grpc.RpcError as error:
            errors.append(error)
    return errors


def test_metrics_hold_no_text_of_requests(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("--metrics-listen", f"127.0.0.1:{port}")
    with process(tmp_path, *arguments) as (address, _), grpc.insecure_channel(address) as channel:
        ask(channel, TOKEN)
        ask_refused(channel)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
    assert "gradellm_" in metrics
    assert MARKER not in metrics
    assert TOKEN not in metrics
