"""CPU time of the SDK in its process, against a server without a model."""

from __future__ import annotations

import asyncio
import statistics
import time

import grpc

from gradellm import Client
from trials.calls import explained_request, generate_call
from trials.load.callers import explain_all
from trials.report import Finding
from trials.serving import fake_server


def client(scale: float) -> list[Finding]:
    """CPU time per token beyond the bare stub's, and 200 streams at once on one AsyncClient."""
    return [_cpu_time(max(100, round(2000 * scale))), _concurrent_streams(200, 40)]


def _cpu_time(num_tokens: int, num_scores: int = 2000) -> Finding:
    with (
        fake_server(num_tokens, num_scores, 0.0) as address,
        grpc.insecure_channel(address) as channel,
        Client(address) as sdk,
    ):

        def by_stub() -> float:
            start = time.process_time()
            for _ in generate_call(channel)(explained_request(num_tokens)):
                pass
            return time.process_time() - start

        def by_sdk() -> float:
            start = time.process_time()
            for _ in sdk.generate("Once upon a time"):
                pass
            return time.process_time() - start

        seconds = [(by_stub(), by_sdk()) for _ in range(16)][1:]  # the first round warms up
    extra = statistics.median(1e6 * (sdk_seconds - stub_seconds) / num_tokens for stub_seconds, sdk_seconds in seconds)
    stub = statistics.median(1e6 * stub_seconds / num_tokens for stub_seconds, _ in seconds)
    return Finding(
        f"CPU time of a token and its {num_scores:,} scores, beyond the bare stub's {stub:.0f} us",
        f"{extra:.0f} us",
        "100 us",
        extra < 100,
    )


def _concurrent_streams(num_streams: int, num_tokens: int) -> Finding:
    with fake_server(num_tokens, 200, 0.25) as address:
        start = time.monotonic()
        requests = [{"prompt": "Once", "max_new_tokens": num_tokens}] * num_streams
        explanations = asyncio.run(explain_all([address], requests, 1))[0]
        complete = sum(each is not None and len(each.tokens) == num_tokens for each in explanations)
        seconds = time.monotonic() - start
    return Finding(
        f"streams that one AsyncClient held at once, each of {num_tokens} tokens in {0.25 * num_tokens:g} s",
        f"{complete}, done after {seconds:.1f} s",
        f"{num_streams}",
        complete == num_streams,
    )
