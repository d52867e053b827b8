"""Servers as processes: started, waited for, requested, and ended; with a stand-in for vLLM."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.network.servers import GradellmServer, ServerError, StreamRefusedError, VLLMServer

SERVE = """\
    import json, sys
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not body["prompt"]:
                self.send_error(400, "no prompt")
                return
            self.send_response(200)
            self.end_headers()
            for _ in range(body["max_tokens"]):
                self.wfile.write(b'data: {"choices": [{"text": "a"}]}\\n\\n')
            self.wfile.write(b'data: {"choices": [], "usage": {}}\\n\\ndata: [DONE]\\n\\n')

    port = int(sys.argv[sys.argv.index("--port") + 1])
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def environment(folder: Path, program: str) -> Path:
    """A virtual environment whose bin/vllm is this program."""
    script = folder / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{textwrap.dedent(program)}")
    script.chmod(0o755)
    return folder


def test_completions_of_openai_s_api_are_counted(tmp_path: Path) -> None:
    with VLLMServer(environment(tmp_path, SERVE), Path("model")) as server:
        assert list(server.stream([5, 6, 7], 3)) == [1, 1, 1, 0]
        with pytest.raises(ServerError, match="vLLM answered 400"):
            list(server.stream([], 3))


def test_a_server_that_does_not_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"vllm did not start: .*of this program"):
        VLLMServer(environment(tmp_path, "raise SystemExit('an error of this program')"), Path("model"))


@pytest.mark.slow
def test_our_server_streams_every_mode(model_path: Callable[[str], Path]) -> None:
    with GradellmServer(model_path("llama")) as server:
        for attribution in (None, "per_token", "chunked(2)"):
            assert sum(server.stream([5, 6, 7], 4, attribution)) == 4


@pytest.mark.slow
def test_a_full_queue_refuses_at_once(model_path: Callable[[str], Path]) -> None:
    with GradellmServer(model_path("llama"), ["--max-running", "1", "--max-queued", "0"]) as server:
        running = server.stream([5, 6, 7], 200)
        next(running)
        with pytest.raises(StreamRefusedError, match="running"):
            list(server.stream([8, 9], 2))
        assert next(running) == 1
        assert sum(running) > 2
