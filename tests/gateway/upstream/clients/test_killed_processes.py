"""Explainer and upstream as processes, killed (SIGKILL) in the middle of an answer."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from gateway.upstream.conftest import in_front_of
from gateway.upstream.test_routes import BODY, DOCUMENTS, of_the_upstream, said_of
from server.conftest import RunningServer
from support.http.calls import post
from support.upstream.fake_vllm import FakeVllm, data_lines
from trials.serving import Served, free_port, served

LONG = {**BODY, "messages": DOCUMENTS, "max_tokens": 24, "stream": True}
FOLLOWED = "gradellm_num_requests_followed"

ENDLESS = """
import http.server, json, time

class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "endless"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not asked.get("stream"):
            return self.answer({"choices": []})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            choice = {"index": 0, "delta": {"content": "on "}, "finish_reason": None}
            data = b"data: " + json.dumps({"id": "1", "choices": [choice]}).encode() + b"\\n\\n"
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
            time.sleep(0.02)

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
print(server.server_port, flush=True)
server.serve_forever()
"""


def follows(metrics: str) -> bool:
    """Whether a server follows a completion, by its metrics."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return any(line.startswith(FOLLOWED) and float(line.rpartition(" ")[2]) > 0 for line in lines)


def test_another_explainer_goes_on_with_the_rows(server: RunningServer) -> None:
    """Each is killed in turn while it follows; what lacks then comes from the other one."""
    vllm = FakeVllm(server.address)
    vllm.pause_seconds = 0.15
    with ExitStack() as stack:
        stack.callback(vllm.close)
        metrics = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        explainers: list[Served] = [
            stack.enter_context(served("--metrics-listen", each, "--log-level", "error")) for each in metrics
        ]
        target = ",".join(each.address for each in explainers)
        url = stack.enter_context(in_front_of(vllm.url, target))
        killed = 0
        lines: list[str] = []
        body = json.dumps({**LONG, "n": 2, "gradellm": {"chunk_size": 2}}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                lines.append(line.decode())
                if not killed and sum('"attribution"' in each for each in lines) >= 4:
                    process = next(each for each, at in zip(explainers, metrics, strict=True) if follows(at)).process
                    process.kill()
                    killed = process.pid
        chunks = data_lines("".join(lines))
        direct = data_lines(post(f"{vllm.url}/chat/completions", {**LONG, "n": 2})[2])
    assert killed
    assert of_the_upstream(chunks) == direct
    for index in range(2):
        said = said_of(chunks, index)
        assert "incomplete" not in said[-1]
        num_tokens = sum(chunk["choices"][0]["index"] == index for chunk in direct[:-1]) - 1  # the first has the role
        indexes = [each["attribution"]["token_index"] for each in said if "attribution" in each]
        assert indexes == list(range(num_tokens))
        assert num_tokens > 4


@contextmanager
def endless_upstream() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that writes "on " until it is killed, and its URL."""
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until_broken(answer: Any) -> bytes:
    """The rest of an answer that breaks off."""
    said = b""
    try:
        while part := answer.read1(1000):
            said += part
    except http.client.HTTPException:
        return said
    raise AssertionError("the answer came to its end")


@pytest.mark.parametrize("own", [{}, {"gradellm": {}}], ids=["plain", "explained"])
def test_an_upstream_that_is_killed(server: RunningServer, own: dict[str, Any]) -> None:
    """What it wrote arrives; then the stream breaks off as its own does, after an error event where it is explained."""
    with endless_upstream() as (process, upstream), in_front_of(upstream, server.address) as url:
        body = json.dumps({"model": "endless", "messages": DOCUMENTS, "stream": True, **own}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        said = b""
        with urllib.request.urlopen(request, timeout=60) as answer:
            while b"on " not in said:
                said += answer.read1(1000)
            process.kill()
            said += until_broken(answer)
        assert b"[DONE]" not in said
        assert (b'"error"' in said) == bool(own)
        status, _, refused = post(f"{url}/v1/chat/completions", json.loads(body))
        code = json.loads(refused)["error"]["code"]
        assert (status, code) in ((503, "upstream_unavailable"), (502, "upstream_broke_off"))  # on a pooled connection
