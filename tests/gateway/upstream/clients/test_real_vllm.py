"""In front of a real vLLM: texts and fields are vLLM's own, and every token is explained.

GRADELLM_VLLM is the folder of a virtual environment with vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream.conftest import in_front_of
from gradellm import Client
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.http.calls import post
from support.upstream.fake_vllm import data_lines
from support.upstream.recording_proxy import RecordingProxy

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
PORT = 8917
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTIONS = ("What is the capital of France?", "Write a sentence about a red ball.", "Zähle bis fünf. 数えて！")
FORMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0, "seed": 7, "top_p": 0.9},
    {"temperature": 0, "stop": [".", "\n"]},
    {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0.8, "seed": 3, "n": 2},
    {"temperature": 0, "response_format": SCHEMA},
    {"temperature": 0, "tools": [WEATHER], "tool_choice": "required"},
    {"temperature": 0, "tools": [WEATHER], "frequency_penalty": 0.5, "return_token_ids": True},
)
CHATS = [
    {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 24,
        "stream": (place + row) % 3 != 0,
        **({"stream_options": {"include_usage": True}} if (place + row) % 3 == 1 else {}),
        **form,
    }
    for row, question in enumerate(QUESTIONS)
    for place, form in enumerate(FORMS)
]


@pytest.fixture(scope="module")
def model() -> str:
    folder = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("GRADELLM_REAL_MODELS has no smollm2")
    return str(folder)


@pytest.fixture(scope="module")
def vllm(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM with the model."""
    program = Path(os.environ.get("GRADELLM_VLLM", "")) / "bin" / "vllm"
    if not program.is_file():
        pytest.skip("GRADELLM_VLLM is not set to a virtual environment with vLLM")
    flags = ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(PORT), "--max-model-len", "2048"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "serve", model, *flags],
            env={**os.environ, **environment, "PYTHONPATH": ""},
            stdout=output,
            stderr=output,
        )
    try:
        until = time.monotonic() + 600
        while not answers(f"http://127.0.0.1:{PORT}/health"):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, "vLLM has not started within 10 minutes"
            time.sleep(1)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def explainer(model: str) -> Iterator[RunningServer]:
    running = RunningServer(Engine.load(model, dtype="float32"), ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def through(vllm: str, explainer: RunningServer) -> Iterator[tuple[RecordingProxy, str]]:
    proxy = RecordingProxy(vllm)
    with in_front_of(proxy.url, explainer.address, idle_seconds=300, wait_seconds=300) as url:
        yield proxy, url
    proxy.close()


def without(answer: Any, asked: Any) -> Any:
    """An answer without what the gateway asks for, written down a second time."""
    answer = json.loads(json.dumps(answer))
    hides = [
        name for name, field in (("logprobs", "logprobs"), ("token_ids", "return_token_ids")) if not asked.get(field)
    ]
    for choice in answer.get("choices", ()):
        choice |= dict.fromkeys((name for name in hides if name in choice), None)
    if "token_ids" in hides and "prompt_token_ids" in answer:
        answer["prompt_token_ids"] = None
    return answer


def is_empty(chunk: Any, asked: Any) -> bool:
    """Whether vLLM would not have sent a chunk of its own accord."""
    choices = chunk["choices"]
    is_asked = asked.get("logprobs") or asked.get("return_token_ids")
    return not is_asked and bool(choices) and all(each["delta"] == {} and not each["finish_reason"] for each in choices)


@dataclass(frozen=True)
class Explained:
    """What the gateway said of a choice, and vLLM's ids of it."""

    ids: list[int]
    rows: dict[int, list[float]]
    incomplete: Any
    upstream: Any


def of_stream(theirs: list[Any], ours: list[Any], choice: int) -> Explained:
    said = [each["gradellm"] for each in ours if "gradellm" in each and each["choices"][0]["index"] == choice]
    parts = [part for each in theirs for part in each["choices"] if part["index"] == choice]
    rows = [each["attribution"] for each in said if "attribution" in each]
    return Explained(
        [one for part in parts for one in part.get("token_ids") or ()],
        {row["token_index"]: row["scores"] for row in rows},
        said[-1].get("incomplete"),
        said[-1]["upstream"],
    )


def check_stream(asked: Any, theirs: list[Any], ours: list[Any]) -> tuple[list[int], list[Explained]]:
    """Compare the chunks; the prompt's ids, and what was said of each choice."""
    assert ours.pop() == theirs.pop() == "[DONE]"
    expected = [without(each, asked) for each in theirs if not is_empty(each, asked)]
    assert [each for each in ours if "gradellm" not in each] == expected
    return theirs[0]["prompt_token_ids"], [of_stream(theirs, ours, choice) for choice in range(asked.get("n", 1))]


def check_whole(asked: Any, theirs: Any, ours: Any) -> tuple[list[int], list[Explained]]:
    """Compare the answers; the prompt's ids, and what was said of each choice."""
    parts = [ours] if asked.get("n", 1) == 1 else ours["choices"]
    said = [{name: part.pop(name) for name in list(part) if name.startswith("gradellm")} for part in parts]
    assert ours == without(theirs, asked)
    explained = [
        Explained(
            choice["token_ids"],
            {row["token_index"]: row["scores"] for row in part["gradellm"]["attributions"]},
            part.get("gradellm_incomplete"),
            part["gradellm_upstream"],
        )
        for choice, part in zip(theirs["choices"], said, strict=True)
    ]
    return theirs["prompt_token_ids"], explained


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_texts_and_fields_are_vllms_own_and_every_token_is_explained(
    through: tuple[RecordingProxy, str], explainer: RunningServer, number: int
) -> None:
    proxy, url = through
    asked = CHATS[number]
    status, _, said = post(f"{url}/v1/chat/completions", {**asked, "gradellm": {}})
    assert status == 200, said
    recorded = proxy.recorded[-1].body.decode()
    if asked["stream"]:
        prompt_ids, choices = check_stream(asked, data_lines(recorded), data_lines(said))
    else:
        prompt_ids, choices = check_whole(asked, json.loads(recorded), json.loads(said))
    for choice in choices:
        assert choice.incomplete is None
        assert sorted(choice.rows) == list(range(len(choice.ids)))
        assert (choice.upstream["ids"], choice.upstream["tokenizer"]) == ("upstream", "same")
        if (compared := choice.upstream["log_probs"]) is not None:
            assert compared["verdict"] in ("same", "unknown")
            assert compared["largest"] < 1e-3
        with Client(explainer.address) as client:
            expected = client.attribute(prompt_ids=prompt_ids, completion_ids=choice.ids)
        for index, scores in enumerate(expected.scores):
            assert choice.rows[index] == pytest.approx(scores, abs=1e-5)
