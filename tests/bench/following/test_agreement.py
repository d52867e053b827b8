"""Weights rounded to a format, weights with noise, and the table; one prompt of a small model in each format."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from gradellm_bench.following.agreement import Judged, main, rounded, table, with_noise
from gradellm_engine import Agreement, NumberFormat, Verdict


@pytest.mark.parametrize(
    ("number_format", "largest_step"),
    [(NumberFormat.FP8, 1 / 8), (NumberFormat.INT8, 1 / 127), (NumberFormat.INT4, 1 / 7)],
)
@pytest.mark.parametrize("width", [256, 100])
def test_rounding(number_format: NumberFormat, largest_step: float, width: int) -> None:
    weight = torch.randn(8, width, generator=torch.Generator().manual_seed(1))
    error = (rounded(weight, number_format) - weight).abs()
    assert 0 < error.max() <= largest_step * weight.abs().max() * 0.51 + 1e-6
    assert rounded(torch.zeros(2, width) + 1e-9, NumberFormat.INT4).isfinite().all()


def test_formats_that_are_computed_with_are_not_rounded() -> None:
    weight = torch.randn(2, 3)
    for number_format in (NumberFormat.FLOAT32, NumberFormat.BFLOAT16, NumberFormat.FLOAT16):
        assert rounded(weight, number_format) is weight


def test_noise() -> None:
    weight = 3 * torch.randn(200, 100, generator=torch.Generator().manual_seed(1))
    noisy = with_noise(weight, 0.05, torch.Generator().manual_seed(2))
    assert float((noisy - weight).std()) == pytest.approx(0.15, rel=0.05)


def test_table() -> None:
    judged = [Judged(Agreement.resumed(32, 0.1, 0.05, 32, noise), Verdict.SAME) for noise in (0.1, 0.3, 0.2)]
    judged.append(Judged(Agreement(), Verdict.DIFFERENT))
    last = table({"bfloat16": judged}).splitlines()[-1]
    assert last == "| bfloat16 | 4 | 0.2000 | 0.2000 | 0.3000 | 1 different, 3 same |"


def test_a_small_model(model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", str(model_path("demo")), "--prompts", "1", "--dtypes", "float32", "--layer", "1"])
    clean, noisy = capsys.readouterr().out.splitlines()[-2:]
    assert clean.startswith("| float32 | 1 | 0.0000")
    assert clean.endswith("| 1 same |")
    assert noisy.endswith("| 1 different |")


class Upstream(BaseHTTPRequestHandler):
    """A server that answers as vLLM does."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "small"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["return_token_ids"]
        choice = {"token_ids": body["prompt"][:9], "logprobs": {"token_logprobs": [-50.0] * 9}}
        self._answer({"choices": [choice]})

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_server(model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    main(["--model", str(model_path("demo")), "--prompts", "1", "--dtypes", "bfloat16", "--url", url])
    server.shutdown()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| small in bfloat16 | 1 |")
    assert last.endswith("| 1 different |")


def test_saved(model_path: Callable[[str], Path], tmp_path: Path) -> None:
    main(["--model", str(model_path("demo")), "--layer", "1", "--save", str(tmp_path / "noisy")])
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "noisy").iterdir()}
