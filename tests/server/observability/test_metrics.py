"""Metrics of known calls have the right values, and no label comes from a request."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.auth.tokens import entry, make_token
from gradellm_server.observability.call_stats import EVALUATION_METRICS, FINISH_REASONS
from gradellm_server.observability.metrics import REQUEST_BUCKETS, Metrics
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer, Serving

PROMPT = "Once upon a time"
NUM_PROMPT_TOKENS = len(PROMPT) + 1


@pytest.fixture
def server(engine: Engine) -> Iterator[RunningServer]:
    """A new server for each test, with all counts at zero."""
    running = RunningServer(engine, ServerSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"))
    yield running
    running.close()


def value(server: RunningServer, name: str, **labels: str) -> float:
    """A sample's value; 0 if there is no such sample."""
    return server.server.metrics.registry.get_sample_value(f"gradellm_{name}", labels) or 0.0


def generate(num_tokens: int, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(input=pb.Input(prompt=PROMPT), max_new_tokens=num_tokens, **fields)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.002)


def test_three_requests_of_known_lengths(server: RunningServer) -> None:
    answers = [
        list(server.stub.Generate(generate(2))),
        list(server.stub.Generate(generate(3, attribution=pb.AttributionOptions()))),
        list(server.stub.Generate(generate(5, attribution=pb.AttributionOptions(method="random")))),
    ]
    assert value(server, "rpc_requests_total", rpc="Generate", code="OK", client="") == 3
    assert value(server, "request_success_total", rpc="Generate", finished_reason="max_new_tokens") == 3
    assert value(server, "prompt_tokens_total", rpc="Generate") == 3 * NUM_PROMPT_TOKENS
    assert value(server, "generation_tokens_total", rpc="Generate") == 10
    assert value(server, "attribution_tokens_total", method="grad_ellm") == 3
    assert value(server, "attribution_tokens_total", method="random") == 5
    assert value(server, "time_to_first_token_seconds_count") == 3
    assert value(server, "inter_token_latency_seconds_count") == 1 + 2 + 4
    assert value(server, "request_time_per_output_token_seconds_count") == 3
    assert value(server, "attribution_lag_tokens_count") == 8
    assert value(server, "attribution_lag_tokens_sum") == 0
    assert value(server, "attribution_seconds_count", rpc="Generate") == 2
    for phase in ("queue", "prefill", "decode"):
        name = f"request_{phase}_time_seconds"
        reported = sum(getattr(answer[-1].finished.timings, f"{phase}_seconds") for answer in answers)
        assert value(server, f"{name}_count", rpc="Generate") == 3
        assert value(server, f"{name}_sum", rpc="Generate") == pytest.approx(reported)
    reported = sum(answer[-1].finished.timings.attribution_seconds for answer in answers[1:])
    assert value(server, "attribution_seconds_sum", rpc="Generate") == pytest.approx(reported)
    total = value(server, "e2e_request_latency_seconds_sum", rpc="Generate")
    parts = value(server, "time_to_first_token_seconds_sum") + value(server, "inter_token_latency_seconds_sum")
    assert 0 < parts <= total
    assert value(server, "num_requests_running") == 0
    assert value(server, "num_requests_waiting") == 0


def test_chunks_come_later_than_their_tokens(server: RunningServer) -> None:
    options = pb.AttributionOptions(delivery=pb.DELIVERY_CHUNKED, chunk_size=4)
    list(server.stub.Generate(generate(8, attribution=options)))
    assert value(server, "attribution_lag_tokens_sum") == 2 * (3 + 2 + 1 + 0)
    assert value(server, "attribution_lag_tokens_bucket", le="2.0") == 6


def test_a_given_completion_is_explained_and_not_generated(server: RunningServer) -> None:
    list(server.stub.Attribute(pb.AttributeRequest(input=pb.Input(prompt=PROMPT), completion="abc")))
    assert value(server, "prompt_tokens_total", rpc="Attribute") == NUM_PROMPT_TOKENS
    assert value(server, "generation_tokens_total", rpc="Attribute") == 0
    assert value(server, "attribution_tokens_total", method="grad_ellm") == 3
    assert value(server, "attribution_lag_tokens_count") == 0
    assert value(server, "request_success_total", rpc="Attribute", finished_reason="end_of_completion") == 1


def test_an_evaluation_counts_its_items(server: RunningServer) -> None:
    request = pb.EvaluateRequest(
        input=pb.Input(prompt=PROMPT),
        generation=pb.GenerationOptions(max_new_tokens=2),
        evaluation=pb.EvaluationOptions(methods=[pb.EvaluatedMethod(attribution=pb.AttributionOptions())]),
    )
    call = server.stub.Evaluate(request)
    assert next(call).HasField("started")
    assert value(server, "evaluations_running") == 1
    items = [answer.item for answer in call if answer.HasField("item")]
    assert items
    for metric, number in (("pi_soft_ns", pb.METRIC_PI_SOFT_NS), ("pi_soft_nc", pb.METRIC_PI_SOFT_NC)):
        expected = sum(item.metric == number for item in items)
        assert value(server, "evaluation_items_total", metric=metric) == expected
    assert value(server, "evaluations_running") == 0
    assert value(server, "evaluation_seconds_count") == 1
    assert value(server, "generation_tokens_total", rpc="Evaluate") == 2
    assert value(server, "time_to_first_token_seconds_count") == 0


def test_cancelled_calls_count_sent_tokens(server: RunningServer) -> None:
    call = server.stub.Generate(generate(200, attribution=pb.AttributionOptions()))
    for _ in range(5):  # started, token, scores, token, scores
        next(call)
    assert value(server, "num_requests_running") == 1
    assert 0 < value(server, "kv_cache_usage_perc") <= 1
    call.cancel()
    until(lambda: value(server, "rpc_requests_total", rpc="Generate", code="CANCELLED", client="") == 1)
    until(lambda: value(server, "num_requests_running") == 0)
    assert value(server, "kv_cache_usage_perc") == 0
    assert 2 <= value(server, "generation_tokens_total", rpc="Generate") < 200
    assert value(server, "prompt_tokens_total", rpc="Generate") == NUM_PROMPT_TOKENS
    assert value(server, "e2e_request_latency_seconds_count", rpc="Generate") == 0
    assert all(
        value(server, "request_success_total", rpc="Generate", finished_reason=reason) == 0 for reason in FINISH_REASONS
    )


def test_refused_calls_count_by_reason(serving: Serving) -> None:
    with serving(max_running=1, max_queued=1) as server:
        with pytest.raises(grpc.RpcError):
            list(server.stub.Generate(pb.GenerateRequest()))
        with pytest.raises(grpc.RpcError):
            server.stub.Tokenize(pb.TokenizeRequest())
        running = [server.stub.Generate(generate(200)) for _ in range(2)]
        next(running[0])
        until(lambda: value(server, "num_requests_waiting") == 1)
        with pytest.raises(grpc.RpcError):
            list(server.stub.Generate(generate(1)))
        assert value(server, "rpc_refused_total", reason="INVALID_REQUEST") == 2
        assert value(server, "rpc_errors_total", reason="INVALID_REQUEST") == 2
        assert value(server, "rpc_refused_total", reason="QUEUE_FULL") == 1
        assert value(server, "rpc_requests_total", rpc="Generate", code="RESOURCE_EXHAUSTED", client="") == 1
        assert value(server, "rpc_requests_total", rpc="Tokenize", code="INVALID_ARGUMENT", client="") == 1
        assert value(server, "max_running_requests") == 1
        assert value(server, "max_queued_requests") == 1
        for call in running:
            call.cancel()


def test_an_engine_that_fails_is_counted_and_nothing_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.engine.model.runner, "step", fail)
    with pytest.raises(grpc.RpcError):
        list(server.stub.Generate(generate(2)))
    assert value(server, "rpc_requests_total", rpc="Generate", code="INTERNAL", client="") == 1
    assert value(server, "rpc_errors_total", reason="INTERNAL") == 1
    assert value(server, "rpc_refused_total", reason="INTERNAL") == 0


def test_calls_are_counted_by_client_and_unknown_callers_too(serving: Serving, tmp_path: Path) -> None:
    token, token_hash = make_token()
    file = tmp_path / "tokens.toml"
    file.write_text(entry("alice", token_hash, {"methods": ["Generate"]}))
    with serving(tokens=file) as server:
        credentials = [("authorization", f"Bearer {token}")]
        list(server.stub.Generate(generate(1), metadata=credentials))
        for metadata in (credentials, [("authorization", "Bearer mallory")]):
            with pytest.raises(grpc.RpcError):
                server.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt="a")), metadata=metadata)
        assert value(server, "rpc_requests_total", rpc="Generate", code="OK", client="alice") == 1
        assert value(server, "rpc_requests_total", rpc="Tokenize", code="UNAUTHENTICATED", client="") == 1
        assert value(server, "rpc_refused_total", reason="TOKEN_NOT_ACCEPTED") == 1
        assert value(server, "rpc_refused_total", reason="METHOD_NOT_ALLOWED") == 1


def test_prefix_cache_queries_and_hits(server: RunningServer) -> None:
    prompt = "A prompt that nobody has asked for, longer than sixteen tokens"
    queries, hits = (value(server, f"prefix_cache_{what}_total") for what in ("queries", "hits"))
    for _ in range(2):
        answers = list(server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=prompt), max_new_tokens=1)))
    reused = answers[-1].finished.usage.reused_prompt_tokens
    assert reused > 0
    assert value(server, "prefix_cache_queries_total") - queries == 2 * (len(prompt) + 1)
    assert value(server, "prefix_cache_hits_total") - hits == reused


def test_a_scrape_waits_for_no_pass(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    runner = server.engine.model.runner
    step = runner.step

    def wait(*arguments: Any) -> Any:
        go_on.wait(30)
        return step(*arguments)

    monkeypatch.setattr(runner, "step", wait)
    call = server.stub.Generate(generate(1))
    try:
        next(call)
        until(lambda: value(server, "num_requests_running") == 1)
        began = time.monotonic()
        text = scraped(server)
        assert time.monotonic() - began < 5
        assert "gradellm_num_requests_running 1.0" in text
    finally:
        go_on.set()
    list(call)


def scraped(server: RunningServer) -> str:
    """The text of a scrape."""
    with urllib.request.urlopen(f"http://{server.server.metrics_address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_memory_of_gpus(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def reported() -> dict[str, float]:
        samples = [sample for family in server.server.metrics.registry.collect() for sample in family.samples]
        return {
            f"{sample.name} {sample.labels['device']}": sample.value
            for sample in samples
            if "device_memory" in sample.name
        }

    assert reported() == {}  # the model is on the CPU
    monkeypatch.setattr(
        "gradellm_server.observability.metrics.gpu_memory", lambda devices: {"cuda:0": (3, 8), "cuda:1": (5, 8)}
    )
    assert reported() == {
        "gradellm_device_memory_bytes cuda:0": 8,
        "gradellm_device_memory_bytes cuda:1": 8,
        "gradellm_device_memory_free_bytes cuda:0": 3,
        "gradellm_device_memory_free_bytes cuda:1": 5,
    }


def test_the_port_serves_the_registry(server: RunningServer) -> None:
    list(server.stub.Generate(generate(2)))
    families = {family.name: family for family in text_string_to_metric_families(scraped(server))}
    (info,) = families["gradellm_model_info"].samples
    assert (info.value, info.labels["family"]) == (1, server.engine.info.family)
    assert families["gradellm_generation_tokens"].samples[0].name == "gradellm_generation_tokens_total"
    ends = [s.labels["le"] for s in families["gradellm_e2e_request_latency_seconds"].samples if "le" in s.labels]
    assert [float(end) for end in ends[: len(REQUEST_BUCKETS)]] == list(REQUEST_BUCKETS)
    assert not any(name.endswith("_created") for name in families)


def test_labels_never_come_from_a_request(server: RunningServer) -> None:
    odd = "zyzzyva"
    for request in (
        generate(1, stop=[odd], attribution=pb.AttributionOptions(method=odd)),
        generate(1, stop=[odd]),
        pb.GenerateRequest(input=pb.Input(prompt=odd), max_new_tokens=1),
    ):
        with suppress(grpc.RpcError):
            list(server.stub.Generate(request, metadata=[("x-request-id", odd), ("x-client", odd)]))
    assert odd not in scraped(server)


def test_series_begin_at_zero_and_stay_few() -> None:
    text = generate_latest(Metrics().registry).decode()
    assert 'gradellm_request_success_total{finished_reason="end_of_text",rpc="Generate"} 0.0' in text
    assert 'gradellm_rpc_requests_total{client="",code="OK",rpc="Evaluate"} 0.0' in text
    for metric in EVALUATION_METRICS:
        assert f'gradellm_evaluation_items_total{{metric="{metric}"}} 0.0' in text
    assert text.count("\n") < 1000
