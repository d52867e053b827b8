"""Servers as processes: started, waited for, requested, and ended; with a stand-in for vLLM."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.network.__main__ import table
from gradellm_bench.network.servers import GradellmServer, ServerError, VLLMServer

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


def test_ratios_are_to_vllm_s_figures() -> None:
    figures = {"prompt": 128, "streams": 8, "token_ms": 60.0, "max_gap_ms": 90.0}
    rows = [
        figures | {"server": "vllm", "tokens_per_second": 100.0, "last_first_token_ms": 1000.0},
        figures | {"server": "plain", "tokens_per_second": 97.0, "last_first_token_ms": 1050.0},
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| 128 | 8 | vllm | 100.0 | 1.00 | 1000 | 1.00 | 60.0 | 90 |"
    assert lines[3] == "| 128 | 8 | plain | 97.0 | 0.97 | 1050 | 1.05 | 60.0 | 90 |"
    assert "| plain | 97.0 |  | 1050 |  |" in table(rows[1:])
