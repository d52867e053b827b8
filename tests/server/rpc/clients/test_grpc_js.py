"""The wire contract with another implementation of gRPC: @grpc/grpc-js with the .proto file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from gradellm import Client
from server.conftest import RunningServer

PROJECT = Path(__file__).parents[4]
PACKAGES = next(iter((PROJECT / ".cache").glob("node-*/node_modules")), None)


@pytest.mark.skipif(shutil.which("node") is None or PACKAGES is None, reason="needs Node.js and its packages")
def test_grpc_js_streams_generate(server: RunningServer) -> None:
    script = Path(__file__).with_name("grpc_client.mjs")
    command = ["node", str(script), str(PACKAGES), str(PROJECT / "proto"), server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    with Client(server.address) as client:
        expected = client.explain("Once upon a time", max_new_tokens=5)
    assert [event["kind"] for event in events] == ["started", *["token", "attribution"] * 5, "finished"]
    assert [event["value"]["id"] for event in events if event["kind"] == "token"] == [t.id for t in expected.tokens]
    rows = [event["value"]["scores"] for event in events if event["kind"] == "attribution"]
    for row, scores in zip(rows, expected.scores, strict=True):
        assert row == pytest.approx(scores, abs=1e-5)
