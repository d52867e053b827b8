"""OpenAI's own clients through the gateway: what they read is the upstream's, and rows are beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from support.http.calls import post
from support.upstream.fake_vllm import FakeVllm

QUESTION = "Clara sang because she had got a card. Why did Clara sing?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
PACKAGES = next(iter((Path(__file__).parents[4] / ".cache").glob("node-*/node_modules/openai")), None)


def expected(vllm: FakeVllm, **fields: Any) -> list[str]:
    body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0, **fields}
    choices = json.loads(post(f"{vllm.url}/chat/completions", body)[2])["choices"]
    return [choice["message"]["content"] for choice in choices]


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)  # pragma: allowlist secret (none)


def test_python_streams(vllm: FakeVllm, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="any", messages=MESSAGES, max_tokens=6, temperature=0, stream=True, extra_body={"gradellm": {}}
    )
    text, rows = "", 0
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        rows += "attribution" in (getattr(chunk, "gradellm", None) or {})
    assert [text] == expected(vllm)
    assert rows == 6


def test_pythons_stream_helper_accumulates_the_upstreams_answer(vllm: FakeVllm, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="any", messages=MESSAGES, max_tokens=60, temperature=0, extra_body={"gradellm": {}}
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert [completion.choices[0].message.content] == expected(vllm, max_tokens=60)
    assert completion.choices[0].finish_reason == "stop"


def test_python_reads_several_choices(vllm: FakeVllm, client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="any", messages=MESSAGES, max_tokens=6, temperature=1, seed=3, n=2, extra_body={"gradellm": {}}
    )
    assert [choice.message.content for choice in completion.choices] == expected(vllm, temperature=1, seed=3, n=2)
    for choice in completion.choices:
        assert len((choice.model_extra or {})["gradellm"]["attributions"]) == 6


@pytest.mark.skipif(shutil.which("node") is None or PACKAGES is None, reason="needs Node.js and its packages")
def test_javascript(vllm: FakeVllm, url: str) -> None:
    assert PACKAGES is not None
    script = Path(__file__).with_name("openai_client.mjs")
    command = ["node", str(script), str(PACKAGES.parent), f"{url}/v1", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {said["text"], said["whole"], said["helper"]} == set(expected(vllm))
    assert (said["rows"], said["wholeRows"]) == (6, 6)
