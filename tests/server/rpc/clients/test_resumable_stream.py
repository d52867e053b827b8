"""Resumed streams equal those of an undisturbed run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest

from gradellm import AsyncClient, Client, ClientClosedError, Event, Retry, StreamBrokenError, UnavailableError
from gradellm.transport import calls as client_calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.params import RECOMMENDED_PRESET
from server.conftest import RunningServer
from support.flaky_proxy import cutting

RETRY = Retry(attempts=20, initial_seconds=0.01, max_seconds=0.05)
PROMPT = "Once upon a time, there was a small red fox"
SECONDS = 60

GENERATED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 5},
    "chunked": {"delivery": "chunked", "chunk_size": 8},
    "prefix": {"sources": "prefix", "temperature": 1.0, "seed": 1},
    "words": {"sources": "prefix", "resolution": "word", "temperature": 0.7, "seed": 3},
    "top": {"top_k_sources": 3, "num_alternatives": 2},
    "contrast": {"contrast": "runner_up"},
    "plain": {"attribution": None},
    "forced": {"forced_ids": [72, 73, 74], "first_attribution": 1},
    "random": {"method": "random"},
    "some tokens": {"tokens": [2, 3, 20], "delivery": "chunked", "chunk_size": 8},
}
GIVEN: dict[str, dict[str, Any]] = {
    "default": {},
    "saliency": {"method": "saliency"},
    "a text": {"method": "saliency", "tokens": "wood"},
}


def calls(name: str) -> Callable[[Any], Any]:
    """A call of the synchronous or asynchronous client; returns its events."""
    kind, _, which = name.partition(" ")
    if kind == "generate":
        return lambda client: client.generate(
            PROMPT, **{"max_new_tokens": 32, "seed": 0, "timeout": SECONDS, **GENERATED[which]}
        )
    if kind == "attribute":
        keywords = {"completion": " and it ran into the wood to sleep", **GIVEN[which]}
        return lambda client: client.attribute_events(PROMPT, timeout=SECONDS, **keywords)
    keywords = {"max_new_tokens": 6, "temperature": 1.0, "stride": 1, "pis": [0.2, 0.6], "metrics": ["pi_soft_ns"]}
    return lambda client: client.evaluate_events(PROMPT, timeout=SECONDS, **keywords)


NAMES = [f"generate {name}" for name in GENERATED] + [f"attribute {name}" for name in GIVEN] + ["evaluate"]


def comparable(event: Event) -> Any:
    """An event without times, and with numbers rounded."""
    if event.finished is not None:
        usage = replace(event.finished.usage, reused_prompt_tokens=0)
        return replace(event.finished, timings=None, usage=usage)  # type: ignore[arg-type]
    if event.attribution is not None:
        return replace(event.attribution, scores=())
    if event.token is not None:
        ids = [alternative.id for alternative in event.token.alternatives]
        return replace(event.token, logprob=0, alternatives=()), ids
    return event


def in_order(events: list[Event]) -> list[Event]:
    """Events with attributions at the end: after a cut, chunks start elsewhere and arrive at other times."""
    rows = [event for event in events if event.attribution is not None]
    return [event for event in events if event.attribution is None] + rows


def same(events: list[Event], undisturbed: list[Event]) -> None:
    events, undisturbed = (in_order([e for e in those if e.progress is None]) for those in (events, undisturbed))
    assert [comparable(event) for event in events] == [comparable(event) for event in undisturbed]
    for actual, expected in zip(events, undisturbed, strict=True):
        if actual.attribution is not None and expected.attribution is not None:
            peak = max(map(abs, expected.attribution.scores))
            assert actual.attribution.scores == pytest.approx(expected.attribution.scores, rel=0, abs=1e-5 * peak)
        if actual.token is not None and expected.token is not None:
            assert actual.token.logprob == pytest.approx(expected.token.logprob, abs=1e-5)


def byte_counts(seed: int) -> Iterator[int | None]:
    rng = random.Random(seed)
    return chain((rng.randrange(300, 9000) for _ in range(6)), repeat(None))


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_cut_at_any_byte_is_complete(server: RunningServer, name: str) -> None:
    call = calls(name)
    with Client(server.address) as client:
        undisturbed = list(call(client))
    num_cuts = 0
    for seed in range(3):
        with cutting(server.address, byte_counts(seed)) as proxy, Client(proxy.target, retry=RETRY) as client:
            events = list(call(client))
            num_cuts += proxy.num_cuts
        if name == "evaluate":  # the server chose the seed: another run's completion may end elsewhere
            assert events[-1].finished is not None
            steps = [event.token.index for event in events if event.token is not None]
            items = [(event.item.step, event.item.name) for event in events if event.item is not None]
            assert steps == list(range(len(steps)))
            assert items == [(step, method) for step in steps for method in (RECOMMENDED_PRESET, "random")]
            continue
        same(events, undisturbed)
    assert num_cuts >= 3


def test_many_asynchronous_streams_over_two_targets(server: RunningServer) -> None:
    call = calls("generate seeded")
    with Client(server.address) as client:
        undisturbed = list(call(client))

    async def all_of(client: AsyncClient) -> list[list[Event]]:
        async def one() -> list[Event]:
            return [event async for event in call(client)]

        return await asyncio.gather(*(one() for _ in range(12)))

    async def run(targets: list[str]) -> list[list[Event]]:
        async with AsyncClient(targets, retry=RETRY) as client:
            return await all_of(client)

    with cutting(server.address, byte_counts(1)) as one, cutting(server.address, byte_counts(2)) as other:
        streams = asyncio.run(run([one.target, other.target]))
        assert one.num_cuts + other.num_cuts >= 6
    for events in streams:
        same(events, undisturbed)


def test_a_stream_is_not_resumed_with_another_model(server: RunningServer) -> None:
    stream = ResumableStream(client_calls.generate(PROMPT, {"max_new_tokens": 4}))
    started = server.stub.Generate(stream.request).next()
    assert stream.take(started, "a") is not None
    assert stream.take(started, "a") is None
    changed = pb.GenerateResponse()
    changed.CopyFrom(started)
    changed.started.provenance.model.weights_sha256 = "other"
    with pytest.raises(StreamBrokenError, match="its weights_sha256 is other"):
        stream.take(changed, "b")
    changed.CopyFrom(started)
    changed.started.provenance.model.config_sha256 = "other"
    with pytest.raises(StreamBrokenError, match="its config_sha256 is other"):
        stream.take(changed, "b")
    changed.started.provenance.model.config_sha256 = ""  # as from a server of an earlier version
    assert stream.take(changed, "b") is None
    changed.CopyFrom(started)
    changed.started.prompt_tokens[0].id += 1
    with pytest.raises(StreamBrokenError, match="tokenizes the prompt differently"):
        stream.take(changed, "b")


def test_without_retry_a_cut_is_an_error(server: RunningServer) -> None:
    with (
        cutting(server.address, iter([2500])) as proxy,
        Client(proxy.target, retry=None) as client,
        pytest.raises(UnavailableError),
    ):
        list(calls("generate greedy")(client))


def test_a_finished_stream_is_not_resumed() -> None:
    stream = ResumableStream(client_calls.generate(PROMPT, {}))
    for event in ({"started": pb.Started()}, {"finished": pb.Finished()}):
        assert not stream.is_over
        stream.take(pb.GenerateResponse(**event), "a")
    assert stream.is_over
    assert stream.truncated("a") is None


def test_progress_is_monotonic() -> None:
    stream = ResumableStream(client_calls.attribute(PROMPT, {"completion": "x"}))
    seen = [
        stream.take(pb.AttributeResponse(progress=pb.Progress(done=done)), "a") for done in (0.2, 0.5, 0.2, 0.5, 0.7)
    ]
    assert [event is not None for event in seen] == [True, True, False, False, True]


def test_progress_of_a_prompt_is_not_repeated_after_a_resume() -> None:
    stream = ResumableStream(client_calls.generate(PROMPT, {}))
    received = [
        stream.take(pb.GenerateResponse(prompt_progress=pb.Progress(done=done)), "a") for done in (0.5, 0.25, 0.75)
    ]
    assert [event.prompt_progress.done for event in received if event and event.prompt_progress] == [0.5, 0.75]
    stream.take(pb.GenerateResponse(token=pb.Token(index=0, id=3)), "a")
    assert stream.take(pb.GenerateResponse(prompt_progress=pb.Progress(done=0.9)), "b") is None


def test_close_ends_the_retry_delays_of_all_streams(server: RunningServer) -> None:
    async def run() -> float:
        client = AsyncClient("127.0.0.1:1", retry=Retry(initial_seconds=20, max_seconds=20))
        keywords = asyncio.ensure_future(client.with_token("t").server_info())
        await asyncio.sleep(0.3)
        began = asyncio.get_running_loop().time()
        await client.close()
        with pytest.raises(ClientClosedError):
            await keywords
        with pytest.raises(ClientClosedError):
            await client.with_token(None).server_info()
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(run()) < 5
