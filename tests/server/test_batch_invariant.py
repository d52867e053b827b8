"""A batch-invariant server, seen through the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradellm import AsyncClient, Client, Explanation
from gradellm.explanation.verification import compared, replay_keywords
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

ASKED: list[dict[str, Any]] = [
    {"prompt": f"Once upon a time, there was a {animal}", "max_new_tokens": 16, "seed": seed, **how}
    for seed, animal in enumerate(("fox", "bear", "small red hen"))
    for how in ({}, {"temperature": 1.0}, {"delivery": "chunked", "chunk_size": 4})
]


@pytest.fixture(scope="module")
def invariant(model_path: Callable[[str], Path]) -> Iterator[RunningServer]:
    engine = Engine.load(str(model_path("llama")), batch_invariant=True)
    running = RunningServer(engine, ServerSettings(listen="localhost:0"))
    yield running
    running.close()


def rows(explanation: Explanation) -> list[tuple[int, float, tuple[float, ...]]]:
    return [
        (token.id, token.logprob, row.scores)
        for token, row in zip(explanation.tokens, explanation.attributions, strict=True)
    ]


def test_concurrent_streams_equal_single_ones(invariant: RunningServer) -> None:
    async def together() -> list[Explanation]:
        async with AsyncClient(invariant.address) as client:
            return list(await asyncio.gather(*(client.explain(**keywords) for keywords in ASKED)))

    with Client(invariant.address) as client:
        for keywords, explanation in zip(ASKED, asyncio.run(together()), strict=True):
            assert rows(explanation) == rows(client.explain(**keywords))


def test_an_explanation_is_reproduced_bitwise(invariant: RunningServer) -> None:
    with Client(invariant.address) as client:
        stored = client.explain(**ASKED[1])
        verdict = compared(stored, client.attribute(**replay_keywords(stored)), tolerance=0.0)
    assert verdict.holds
    assert verdict.largest_difference == verdict.largest_logprob_difference == 0.0
    assert verdict.mismatches == ()


def test_a_server_without_batch_invariance_is_a_mismatch(invariant: RunningServer, server: RunningServer) -> None:
    with Client(invariant.address) as client, Client(server.address) as other:
        stored = client.explain(**ASKED[0])
        verdict = compared(stored, other.attribute(**replay_keywords(stored)))
    (mismatch,) = (mismatch for mismatch in verdict.mismatches if mismatch.what == "model.attention_kernel")
    assert (mismatch.then, mismatch.now) == ("gradellm, batch-invariant", "gradellm")
