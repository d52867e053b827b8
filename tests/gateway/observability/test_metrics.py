"""The gateway's metrics, in vLLM's names and its own."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.conftest import running
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post, send


@pytest.fixture
def url(server: RunningServer) -> Iterator[str]:
    with running(server.address, settings={"served_names": ("tiny",)}) as url:
        yield url


def samples(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, headers, said = send(url, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(said)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float:
    own = labels if name.startswith("gradellm") else {"model_name": "tiny", "engine": "0", **labels}
    return samples(url).get((name, frozenset(own.items())), 0.0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": True}),
        ("/v1/completions", {"prompt": "Once", "max_tokens": 3}),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 3}),
    ],
)
def test_generations_are_counted_in_vllms_names(url: str, path: str, body: Any) -> None:
    assert post(f"{url}{path}", body)[0] == 200
    assert value(url, "vllm:generation_tokens_total") == 3
    assert value(url, "vllm:prompt_tokens_total") > 0
    assert value(url, "vllm:request_success_total", finished_reason="length") == 1
    assert value(url, "vllm:num_requests_running") == 0
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert value(url, f"vllm:{name}_seconds_count") == 1
    assert value(url, "vllm:inter_token_latency_seconds_count") == 2
    assert value(url, "vllm:request_generation_tokens_sum") == 3
    assert value(url, "gradellm_gateway_http_requests_total", path=path, method="POST", status="200") == 1


def test_a_generation_that_its_caller_leaves_runs_no_longer(url: str) -> None:
    body = {"messages": MESSAGES, "max_tokens": 100, "stream": True}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read(10)
    response.close()
    connection.close()
    until = time.monotonic() + 20
    while value(url, "vllm:num_requests_running") and time.monotonic() < until:
        time.sleep(0.05)
    assert value(url, "vllm:num_requests_running") == 0


def test_labels_are_bounded(url: str) -> None:
    for path in ("/v1/nothing", "/v1/models/x/y", "/" + "a" * 100):
        send(url, "GET", path)
    send(url, "BREW", "/v1/chat/completions")
    post(f"{url}/v1/chat/completions", {"model": "gpt-9", "messages": MESSAGES})
    labels = [dict(labels) for name, labels in samples(url) if name == "gradellm_gateway_http_requests_total"]
    assert {each["path"] for each in labels} <= {"other", "/v1/chat/completions", "/metrics"}
    assert {each["method"] for each in labels} <= {"GET", "POST", "other"}
    assert "gpt-9" not in send(url, "GET", "/metrics")[2]
