"""Followed completions through the SDK: equal to those of Attribute, also where connections break off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm import AsyncClient, Client, Event, Explanation, InvalidRequestError, Retry, UnavailableError
from server.conftest import RunningServer
from support.flaky_proxy import cutting

RETRY = Retry(attempts=20, initial_seconds=0.01, max_seconds=0.05)
PROMPT = "Once upon a time, there was a small red fox"
KEYWORDS: dict[str, Any] = {"upstream_dtype": "float32", "chunk_size": 4, "flush_seconds": 0.05, "timeout": 60}

Written = tuple[list[int], list[float]]
FollowFn = Callable[..., Explanation]


def completion(server: RunningServer, ids: Sequence[int]) -> Written:
    with Client(server.address) as client:
        tokens = client.attribute(PROMPT, completion_ids=ids).tokens
    return list(ids), [token.logprob for token in tokens]


@pytest.fixture(scope="module")
def written(server: RunningServer) -> Written:
    """What another engine writes: any ids, with parts of characters among them."""
    draw = random.Random(2)
    return completion(server, [draw.randrange(10, server.engine.info.vocab_size) for _ in range(32)])


@pytest.fixture(scope="module")
def words(server: RunningServer) -> Written:
    """What another engine writes: whole characters."""
    return completion(server, server.engine.tokenize("and it ran into the wood").ids[1:])


def synchronous(target: str, written: Written, pause: float = 0.0, **keywords: Any) -> Explanation:
    """The explanation of a completion that comes in pieces of 3 tokens."""
    with Client(target, retry=RETRY) as client, client.follow(PROMPT, **{**KEYWORDS, **keywords}) as following:
        for first in range(0, len(written[0]), 3):
            following.append(written[0][first : first + 3], written[1][first : first + 3])
            if pause:
                wait(pause)
        return following.result()


def asynchronous(target: str, written: Written, pause: float = 0.0, **keywords: Any) -> Explanation:
    async def follow() -> Explanation:
        async with (
            AsyncClient(target, retry=RETRY) as client,
            client.follow(PROMPT, **{**KEYWORDS, **keywords}) as following,
        ):
            for first in range(0, len(written[0]), 3):
                await following.append(written[0][first : first + 3], written[1][first : first + 3])
                await asyncio.sleep(pause)
            return await following.result()

    return asyncio.run(follow())


both = pytest.mark.parametrize("follow", [synchronous, asynchronous])


def wait(seconds: float) -> None:
    asyncio.run(asyncio.sleep(seconds))


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        wait(0.02)
    raise AssertionError("it has not come to that in time")


def same(explanation: Explanation, expected: Explanation) -> None:
    assert [(t.index, t.id, t.text) for t in explanation.tokens] == [(t.index, t.id, t.text) for t in expected.tokens]
    assert [row.token_index for row in explanation.attributions] == [row.token_index for row in expected.attributions]
    for row, other in zip(explanation.attributions, expected.attributions, strict=True):
        peak = max(map(abs, other.scores))
        assert row.scores == pytest.approx(other.scores, rel=0, abs=1e-5 * peak)


@both
@pytest.mark.parametrize(
    "keywords",
    [{}, {"sources": "prefix", "resolution": "word"}, {"method": "saliency"}, {"tokens": [2, 17]}],
    ids=["default", "words of the prefix", "saliency", "some tokens"],
)
def test_equals_attribute(server: RunningServer, written: Written, follow: FollowFn, keywords: dict[str, Any]) -> None:
    with Client(server.address) as client:
        expected = client.attribute(PROMPT, completion_ids=written[0], **keywords)
    explanation = follow(server.address, written, **keywords)
    same(explanation, expected)
    assert explanation.finished is not None
    agreement = explanation.finished.agreement
    assert agreement is not None
    assert (agreement.verdict, agreement.tokens) == ("same", 32)
    assert Explanation.from_json(explanation.to_json()) == explanation


@both
def test_cut_at_any_byte(server: RunningServer, written: Written, follow: FollowFn) -> None:
    with Client(server.address) as client:
        expected = client.attribute(PROMPT, completion_ids=written[0])
    num_cuts = 0
    for seed in range(3):
        draw = random.Random(seed)
        allowances = chain((draw.randrange(300, 6000) for _ in range(5)), repeat(None))
        with cutting(server.address, allowances) as proxy:
            explanation = follow(proxy.target, written, pause=0.02)
            num_cuts += proxy.num_cuts
        same(explanation, expected)
        assert explanation.finished is not None
        agreement = explanation.finished.agreement
        assert agreement is not None
        assert agreement.verdict == "same"
        assert explanation.finished.usage.attributed_tokens == 32
    assert num_cuts >= 3


@both
def test_another_model(server: RunningServer, written: Written, follow: FollowFn) -> None:
    other = (written[0], [logprob - 0.3 * (-1) ** i for i, logprob in enumerate(written[1])])
    explanation = follow(server.address, other)
    assert explanation.finished is not None
    assert explanation.finished.agreement is not None
    assert explanation.finished.agreement.verdict == "different"
    assert explanation.finished.agreement.noise > 0.1


@both
def test_errors_of_the_call(server: RunningServer, written: Written, follow: FollowFn) -> None:
    with pytest.raises(InvalidRequestError, match="at most 5 are possible"):
        follow(server.address, written, max_new_tokens=5)
    with pytest.raises(InvalidRequestError, match="attribution: None turns attribution off"):
        follow(server.address, written, attribution=None)
    with (
        pytest.raises(UnavailableError, match="no gradellm server answers"),
        Client("127.0.0.1:1", retry=None) as client,
    ):
        client.follow(PROMPT).result()


def test_append_raises_the_error_of_the_call(server: RunningServer) -> None:
    with Client(server.address) as client, client.follow(PROMPT, max_new_tokens=1) as following:
        following.append([20, 21])
        with pytest.raises(InvalidRequestError, match="at most 1 are possible"):
            list(following)
        for fails in (lambda: following.append([22]), following.poll, following.result):
            with pytest.raises(InvalidRequestError, match="at most 1 are possible"):
                fails()


def test_leaving_frees_the_slot(server: RunningServer, words: Written) -> None:
    thread = server.server.engine_thread
    with Client(server.address) as client:
        with client.follow(PROMPT) as following:
            following.append(words[0][:4])
            next(iter(following))
            until(lambda: thread.num_followed == 1)
        until(lambda: thread.num_unfinished == 0)


def chunks_of(written: Written, *, with_ids: bool) -> list[Any]:
    """Chunks as the openai package gives them."""
    chunks: list[Any] = []
    for place in range(0, len(written[0]), 4):
        logprobs = SimpleNamespace(content=[SimpleNamespace(logprob=value) for value in written[1][place : place + 4]])
        choice = SimpleNamespace(index=0, delta=SimpleNamespace(content="ab"), logprobs=logprobs)
        if with_ids:
            choice.token_ids = written[0][place : place + 4]
        other = SimpleNamespace(index=1, delta=SimpleNamespace(content="zz"), logprobs=None, token_ids=[11])
        chunks.append(SimpleNamespace(choices=[choice, other]))
    return [*chunks, SimpleNamespace(choices=[])]


def items(address: str, chunks: Sequence[Any], *, is_async: bool, **keywords: Any) -> list[Any]:
    if not is_async:
        with Client(address) as client:
            return list(client.follow_openai(iter(chunks), **keywords))

    async def coming() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk
            await asyncio.sleep(0)

    async def collect() -> list[Any]:
        async with AsyncClient(address) as client:
            return [item async for item in client.follow_openai(coming(), **keywords)]

    return asyncio.run(collect())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
def test_openai_chunks(server: RunningServer, written: Written, *, is_async: bool) -> None:
    with Client(server.address) as client:
        prompt = client.tokenize(PROMPT)
        expected = client.attribute(prompt_ids=[token.id for token in prompt.tokens], completion_ids=written[0])
    chunks = chunks_of(written, with_ids=True)
    chunks[0].prompt_token_ids = [token.id for token in prompt.tokens]
    found = items(server.address, chunks, is_async=is_async, upstream_dtype="float32", timeout=30)
    assert [item.chunk for item in found if item.chunk is not None] == chunks
    assert all((item.chunk is None) != (item.event is None) for item in found)
    explanation = Explanation.from_events(item.event for item in found if item.event is not None)
    same(explanation, expected)
    assert explanation.finished is not None
    assert explanation.finished.agreement is not None
    assert explanation.finished.agreement.tokens == 32


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
def test_openai_chunks_without_ids(server: RunningServer, written: Written, *, is_async: bool) -> None:
    chunks = chunks_of(written, with_ids=False)
    found = items(server.address, chunks, is_async=is_async, timeout=30, messages=[("user", "Hello")])
    explanation = Explanation.from_events(item.event for item in found if item.event is not None)
    assert explanation.text == "ab" * 8
    with pytest.raises(InvalidRequestError, match="messages: are needed"):
        items(server.address, chunks, is_async=is_async)


def test_events_come_while_tokens_come(server: RunningServer, words: Written) -> None:
    with Client(server.address) as client, client.follow(PROMPT, **KEYWORDS) as following:
        events: Iterator[Event] = iter(following)
        assert next(events).started is not None
        following.append(words[0][:4], words[1][:4])
        kinds = [event.attribution is not None for event in (next(events) for _ in range(9))]
        assert sum(kinds) == 4
        following.finish()
        assert [event.finished is not None for event in events] == [True]
        with pytest.raises(InvalidRequestError, match="comes after finish"):
            following.append([1])
