"""Half a minute of load by load generators that people use: no request fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.clients.conftest import gateway_of, program, real_model, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
SECONDS = 30


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with gateway_of(real_model("smollm2")) as url:
        yield url.removesuffix("/v1")


def test_guidellm(url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = {
        "backend": f"kind=openai_http,target={url},model=gradellm",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_duration,seconds={SECONDS}",
        "tokenizer": f"kind=hf_auto,model={real_model('smollm2')}",
        "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "output": f"kind=json,path={report}",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    run(program("guidellm-*/bin/guidellm"), "run", "--disable-progress", *flags, HF_HUB_OFFLINE="1")
    totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["errored"] == 0
    assert totals["successful"] > 0


def test_vllm_bench_serve(url: str, tmp_path: Path) -> None:
    vllm = Path(os.environ.get("GRADELLM_VLLM", "")) / "bin" / "vllm"
    if not vllm.is_file():
        pytest.skip("GRADELLM_VLLM is not set to a virtual environment with vLLM")
    options = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": url,
        "model": "gradellm",
        "tokenizer": str(real_model("smollm2")),
        "dataset-name": "random",
        "random-input-len": "32",
        "random-output-len": "16",
        "num-prompts": str(SECONDS),
        "request-rate": "1",
        "result-dir": str(tmp_path),
        "result-filename": "result.json",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    run(vllm, "bench", "serve", "--ignore-eos", "--save-result", *flags, HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (SECONDS, 0)
